/* What every page uses. Elements of a run's page (live-run, series-chart, run-progress, token-view)
   are entry points of their own, named in that page's `scripts` block. */
import "./theme-toggle.js";
import "./nav-bar.js";
import "./menus.js";
import "./copy-code.js";
import "./time-ago.js";
import "./confirm-button.js";
import "./tab-set.js";
import "./toast-region.js";
import "./key-help.js";
import "./sent-once.js";
