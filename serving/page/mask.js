// A rough mask, drawn with pointer or keys; kept as PNG of the picture's size, 255 where the defect is.
import { ask, byId, say, tryTo } from "/page/core.js";

let picture = null;
let saved = null;
let last = null;
let pen = [0, 0];
const canvas = () => byId("mask-canvas");
const radius = () => (Number(byId("pen-size").value) / 800) * Math.max(picture.width, picture.height) * 2;

const stroke = (from, to) => {
  const context = canvas().getContext("2d");
  const erase = document.querySelector("[name=pen]:checked").value === "eraser";
  context.globalCompositeOperation = erase ? "destination-out" : "source-over";
  context.strokeStyle = "#ff2020";
  context.lineCap = "round";
  context.lineWidth = Math.max(1, 2 * radius());
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  context.stroke();
};

const position = (event) => {
  const box = canvas().getBoundingClientRect();
  return [((event.clientX - box.left) * picture.width) / box.width, ((event.clientY - box.top) * picture.height) / box.height];
};

// The pixels of a drawing: visible ones of a mask, or the opposite way
const repaint = (source, rule) => {
  const target = document.createElement("canvas");
  [target.width, target.height] = [picture.width, picture.height];
  const context = target.getContext("2d");
  context.drawImage(source, 0, 0);
  const pixels = context.getImageData(0, 0, target.width, target.height);
  for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set(rule(pixels.data[i], pixels.data[i + 3]), i);
  context.putImageData(pixels, 0, 0);
  return target;
};

export const drawMask = (chosen, after) => {
  [picture, saved, last, pen] = [chosen, after, null, [chosen.width / 2, chosen.height / 2]];
  byId("mask-title").textContent = `Mask of ${picture.name || picture.id}`;
  byId("mask-picture").src = `/api/v1/pictures/${picture.id}/view?side=2048`;
  [canvas().width, canvas().height] = [picture.width, picture.height];
  if (picture.has_mask) {
    const old = new Image();
    old.onload = () => canvas().getContext("2d").drawImage(repaint(old, (red) => (red > 127 ? [255, 32, 32, 255] : [0, 0, 0, 0])), 0, 0);
    old.src = `/api/v1/pictures/${picture.id}/mask?${picture.marked}`;
  }
  byId("mask").showModal();
};

const save = async () => {
  const drawn = repaint(canvas(), (_, alpha) => (alpha > 127 ? [255, 255, 255, 255] : [0, 0, 0, 255]));
  const blob = await new Promise((done) => drawn.toBlob(done, "image/png"));
  await ask(`/pictures/${picture.id}/mask`, { method: "PUT", headers: { "Content-Type": "image/png" }, body: blob });
  byId("mask").close();
  await saved();
  say("mask saved, picture marked defective");
};

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export const startMask = () => {
  const ends = () => { last = null; };
  canvas().addEventListener("pointerdown", (event) => { canvas().setPointerCapture(event.pointerId); last = position(event); stroke(last, last); });
  canvas().addEventListener("pointermove", (event) => { if (last) { const to = position(event); stroke(last, to); last = to; } });
  canvas().addEventListener("pointerup", ends);
  canvas().addEventListener("pointercancel", ends);
  canvas().addEventListener("keydown", (event) => {
    if (MOVES[event.key]) pen = pen.map((value, i) => Math.max(0, Math.min(value + MOVES[event.key][i] * Math.max(1, radius()), i ? picture.height : picture.width)));
    else if (event.key === " ") stroke(pen, pen);
    else return;
    event.preventDefault();
    say(`pen at ${pen.map(Math.round).join(", ")}`);
  });
  byId("mask-save").addEventListener("click", tryTo(save));
  byId("mask-cancel").addEventListener("click", () => byId("mask").close());
};
