// Drift and versions.
import { ask, bars, byId, make, post, recipePath, say, score, tryTo } from "/page/core.js";
import { undoVersion } from "/page/threshold.js";

const side = (name, { count, mean, std }) => `${name}: mean ${mean.toPrecision(3)}, standard deviation ${std.toPrecision(3)} (${count})`;

const drifted = (name, figure) => {
  if (!figure) return make("article", {}, make("h2", {}, name), make("p", {}, "Too few pictures to compare."));
  const series = [{ counts: figure.reference.histogram, kind: "old" }, { counts: figure.recent.histogram, kind: "new" }];
  return make("article", {}, make("h2", {}, name), make("p", { class: figure.moved ? "moved" : "same" }, figure.line || "has not moved"),
    bars(series, `Distribution of ${name}: gray before, blue now`),
    make("p", { class: "hint" }, `${side("Gray, before", figure.reference)}; ${side("blue, now", figure.recent)}`));
};

export const drift = {
  open: async () => {
    const found = await ask(recipePath("/drift?last=200"));
    byId("drifts").replaceChildren(
      make("p", { class: found.moved ? "moved" : "same" }, found.line),
      make("p", {}, `The last ${found.compared} pictures; compared with: ${found.reference || "nothing yet"}.`),
      ...Object.entries(found.figures).map(([name, figure]) => drifted(name, figure)));
  },
  start: () => {},
};

const plain = (value) => (typeof value === "number" ? String(Number(value.toPrecision(5))) : typeof value === "object" && value ? JSON.stringify(value) : String(value ?? "–"));

const table = (head, rows) => make("div", { class: "scroll" }, make("table", {},
  make("tr", {}, ...head.map((name) => make("th", {}, name))),
  ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, plain(cell)))))));

const compared = ({ old = {}, new: fresh = {}, pictures = [] }) => {
  const names = [...new Set([...Object.keys(old), ...Object.keys(fresh)])];
  const parts = [make("h3", {}, "Comparison on the same pictures"), table(["Figure", "Old", "New"], names.map((name) => [name, old[name], fresh[name]]))];
  const keys = [...new Set(pictures.flatMap((each) => (each && typeof each === "object" ? Object.keys(each) : ["picture"])))];
  if (pictures.length) parts.push(make("h3", {}, "Pictures that differ"), table(keys, pictures.map((each) => keys.map((key) => (each && typeof each === "object" ? each[key] : each)))));
  return parts;
};

const card = (version) => {
  const { comparison, ...figures } = version.figures;
  const activate = tryTo(async () => { await post(recipePath("/activate"), { number: version.number }); await versions.open(); say(`version ${version.number} judges from now on`); });
  return make("article", {}, make("h2", {}, `Version ${version.number}${version.active ? " (active)" : ""}`),
    make("p", {}, `${version.origin}, ${new Date(version.created * 1000).toLocaleString()}; good up to ${score(version.unsure)}, defective above ${score(version.defective)}; weights ${version.digest.slice(0, 12)}`),
    version.active ? null : make("button", { onclick: activate }, `Activate version ${version.number}`),
    ...(Object.keys(figures).length ? [table(["Figure", "Value"], Object.entries(figures))] : []),
    ...(comparison ? compared(comparison) : []));
};

export const versions = {
  open: async () => byId("version-list").replaceChildren(...(await ask(recipePath("/versions"))).versions.map(card)),
  start: () => byId("rollback").addEventListener("click", tryTo(async () => { await undoVersion(); await versions.open(); })),
};
