/* Sets the theme before the first paint. Loaded alone and blocking, so that no page flashes;
   the choice is "light", "dark" or, when nothing is stored, the system's. */
{
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");

  const stored = () => {
    try {
      return localStorage.getItem("stillroom.theme");
    } catch {
      return null;
    }
  };

  const apply = () => {
    const choice = stored();
    root.dataset.themeChoice = choice ?? "system";
    root.dataset.bsTheme = choice ?? (system.matches ? "dark" : "light");
    root.dispatchEvent(new CustomEvent("theme-change"));
  };

  apply();
  system.addEventListener("change", apply);
  addEventListener("storage", apply);
  root.addEventListener("theme-choice", apply);
}
