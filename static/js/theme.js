/* Sets the theme before the first paint. Loaded alone and blocking, so that no page flashes; the
   choice is "light", "dark" or "system", and is kept in localStorage where the browser allows it.
   Hears `theme-choice` (detail: the choice) and tells `theme-change`, both on the root element. */
{
  const KEY = "stillroom.theme";
  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");

  const stored = () => {
    try {
      return localStorage.getItem(KEY) ?? "system";
    } catch {
      return root.dataset.themeChoice ?? "system";
    }
  };

  const apply = (choice) => {
    const system = prefersDark.matches ? "dark" : "light";
    root.dataset.themeChoice = choice;
    root.dataset.bsTheme = choice === "system" ? system : choice;
    root.dispatchEvent(new CustomEvent("theme-change"));
  };

  root.addEventListener("theme-choice", ({ detail: choice }) => {
    apply(choice);
    try {
      localStorage.setItem(KEY, choice);
    } catch {
      /* Storage is off: the choice lasts as long as the page. */
    }
  });
  prefersDark.addEventListener("change", () => apply(root.dataset.themeChoice));
  addEventListener("storage", () => apply(stored()));
  apply(stored());
}
