// Two thresholds over the histograms of scores.
import { ask, bars, byId, make, post, recipePath, say, score, tryTo } from "/page/core.js";

let sets = [];
let range = [0, 1];
let at = { unsure: 0.5, defective: 0.5 };
const BINS = 60;

const binned = (values) => {
  const counts = new Array(BINS).fill(0);
  for (const value of values) counts[Math.min(BINS - 1, Math.floor(((value - range[0]) / (range[1] - range[0])) * BINS))] += 1;
  return counts;
};

const split = (values) => {
  const good = values.filter((value) => value <= at.unsure).length;
  const defective = values.filter((value) => value > at.defective).length;
  return [values.length, good, values.length - good - defective, defective];
};

const show = () => {
  const lines = ["unsure", "defective"].map((key) => [(at[key] - range[0]) / (range[1] - range[0]), key]);
  byId("histogram").replaceChildren(...sets.filter(({ values }) => values.length).flatMap(({ name, kind, values }) =>
    [make("p", { class: "hint" }, `${name} (${values.length})`), bars([{ counts: binned(values), kind }], `Histogram of scores: ${name}`, lines)]));
  for (const key of ["unsure", "defective"]) byId(`${key}-value`).textContent = score(at[key]);
  const all = (kind) => split(sets.filter((set) => set.kind === kind).flatMap(({ values }) => values));
  const [bad, misses] = all("defective");
  const [fine, , , alarms] = all("good");
  byId("counts").textContent = `Misses: ${misses} of ${bad} defective. False alarms: ${alarms} of ${fine} good. Unsure: ${all("recent")[2]} of the last ${all("recent")[0]}.`;
  const rows = sets.map(({ name, values }) => make("tr", {}, make("th", {}, name), ...split(values).map((count) => make("td", {}, String(count)))));
  const head = make("tr", {}, ...["Scores", "Number", "Good", "Unsure", "Defective"].map((name) => make("th", {}, name)));
  byId("table").replaceChildren(make("div", { class: "scroll" }, make("table", {}, head, ...rows)));
};

const load = async () => {
  const found = await ask(recipePath(`/scores?last=${byId("last").value}`));
  sets = [
    { name: "Training, good", kind: "good", values: found.training.good || [] },
    { name: "Training, defective", kind: "defective", values: found.training.defective || [] },
    { name: "Marked good", kind: "good", values: found.marked.good || [] },
    { name: "Marked defective", kind: "defective", values: found.marked.defective || [] },
    { name: "Last pictures", kind: "recent", values: found.recent },
  ];
  at = { unsure: found.unsure ?? 0.5, defective: found.defective ?? 0.5 };
  const values = [...sets.flatMap((set) => set.values), at.unsure, at.defective];
  const [low, high] = values.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [1, 0]);
  const margin = Math.max(0.01, 0.05 * (high - low));
  range = [Math.max(0, low - margin), Math.min(1, high + margin)];
  for (const key of ["unsure", "defective"]) {
    const slider = byId(key);
    [slider.min, slider.max, slider.step] = [range[0], range[1], (range[1] - range[0]) / 400];
    slider.value = at[key];
  }
  show();
};

const moved = (key) => {
  at[key] = Number(byId(key).value);
  const other = key === "unsure" ? "defective" : "unsure";
  if (at.unsure > at.defective) { at[other] = at[key]; byId(other).value = at[key]; }
  show();
};

export const undoVersion = async () => {
  const version = await post(recipePath("/undo"));
  say(`version ${version.number} judges again`);
};

export const threshold = {
  open: load,
  start: () => {
    for (const key of ["unsure", "defective"]) byId(key).addEventListener("input", () => moved(key));
    byId("last").addEventListener("change", tryTo(load));
    byId("save").addEventListener("click", tryTo(async () => {
      const version = await post(recipePath("/thresholds"), at);
      await load();
      say(`saved: version ${version.number} judges from now on`);
    }));
    byId("undo-version").addEventListener("click", tryTo(async () => { await undoVersion(); await load(); }));
  },
};
