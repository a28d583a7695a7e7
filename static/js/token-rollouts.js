/* The rollouts that a step's trace keeps, as a list to choose from: right or wrong, length, mean reward, and
   which texts were read again. It can be put in another order; which one is open is told from outside. */
import { element, icon } from "./dom.js";
import { format, signed } from "./number-format.js";

const MISSING = Number.POSITIVE_INFINITY;
const ORDERS = {
  kept: ["As kept", (_, index) => index],
  gap: ["Lowest mean reward", ({ means }) => means.token_reward ?? MISSING],
  kl: ["Highest mean KL", ({ means }) => -(means.reverse_kl ?? -MISSING)],
  length: ["Longest", ({ length }) => -length],
  wrong: ["Wrong first", ({ correct }) => ({ false: 0, null: 1, true: 2 })[correct]],
  prompt: ["Prompt", ({ prompt_index: prompt }) => prompt ?? MISSING],
};
const STATES = {
  true: ["good", "succeeded", "Correct"],
  false: ["bad", "failed", "Wrong"],
  null: ["quiet", "unknown", "Not graded"],
};

export class TokenRollouts {
  constructor({ choose }) {
    this.choose = choose;
    this.order = element(
      "select",
      { className: "form-select form-select-sm", "aria-label": "Order of rollouts" },
      Object.entries(ORDERS).map(([value, [text]]) => element("option", { value, text })),
    );
    this.order.addEventListener("change", () => this.arrange());
    this.items = element("ol", { className: "rollout-list" });
    this.count = element("h3", { className: "rollout-count" });
    this.node = element("nav", { className: "rollouts", "aria-label": "Traced rollouts" }, [
      element("div", { className: "rollouts-head" }, [this.count, this.order]),
      this.items,
    ]);
  }

  show(rollouts, index, { step }) {
    this.rollouts = rollouts;
    const widest = Math.max(...rollouts.map(({ means }) => Math.abs(means.token_reward ?? 0)), 1e-9);
    this.buttons = rollouts.map((one, at) => this.item(one, at, step, widest));
    this.count.textContent = rollouts.length === 1 ? "1 rollout" : `${rollouts.length} rollouts`;
    this.arrange();
    this.mark(index);
  }

  arrange() {
    const key = ORDERS[this.order.value][1];
    const places = [...this.rollouts.keys()].sort(
      (one, other) => key(this.rollouts[one], one) - key(this.rollouts[other], other) || one - other,
    );
    this.items.replaceChildren(...places.map((at) => element("li", {}, [this.buttons[at]])));
  }

  mark(index) {
    this.buttons.forEach((button, at) => {
      if (at === index) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    });
  }

  item(one, at, step, widest) {
    const [tone, name, text] = STATES[one.correct];
    const { token_reward: reward } = one.means;
    const again = one.written_step !== null && one.written_step !== undefined && one.written_step !== step;
    const bar = element("span", { className: "rollout-bar", "aria-hidden": "true" });
    bar.style.setProperty("--share", Math.abs(reward ?? 0) / widest);
    bar.toggleAttribute("data-above", (reward ?? 0) > 0);
    const state = element("span", { className: "rollout-state", "data-tone": tone, title: text }, [
      icon(name),
      element("span", { className: "visually-hidden", text }),
    ]);
    const button = element("button", { className: "rollout", type: "button" }, [
      element("span", { className: "rollout-line" }, [
        state,
        element("span", {
          className: "rollout-name",
          text: one.prompt_index === null ? `Rollout ${at + 1}` : `Prompt ${one.prompt_index}`,
        }),
        ...(again ? [element("span", { className: "tag", text: `of step ${one.written_step}` })] : []),
      ]),
      element("span", { className: "rollout-excerpt", text: one.excerpt }),
      element("span", { className: "rollout-line rollout-facts" }, [
        element("span", { text: `${one.length.toLocaleString("en")} tokens${one.truncated ? ", cut" : ""}` }),
        element("span", { className: "rollout-reward", title: "Mean token reward, nats" }, [
          bar,
          element("span", { text: signed(format(reward === null ? null : Number(reward.toFixed(3)))) }),
        ]),
      ]),
    ]);
    button.addEventListener("click", () => this.choose(at));
    return button;
  }
}
