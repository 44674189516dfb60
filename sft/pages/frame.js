"use strict";
// What the scripts of all pages share. Text from models and data becomes text nodes only: nothing here parses HTML.
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);

function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

const imageUrls = new Map();
function urlOfImage(index) {
  const { url } = byId(`image-${index}`).dataset;
  if (url) return url;
  if (!imageUrls.has(index)) {
    const bytes = Uint8Array.from(atob(byId(`image-${index}`).textContent), (char) => char.charCodeAt(0));
    imageUrls.set(index, URL.createObjectURL(new Blob([bytes], { type: "image/webp" })));
  }
  return imageUrls.get(index);
}

// `image` is the number of an image of the page or null; `box` is [left, top, width, height] in percent of it, `point`
// [x, y] in thousandths, as answers give it.
function drawShot(shot, { image, box, point }, { alt, absent, boxTitle, pointTitle }) {
  shot.replaceChildren();
  if (image === null) {
    shot.append(make("span", "absent", absent));
    return;
  }
  const picture = make("img");
  picture.alt = alt;
  picture.src = urlOfImage(image);
  shot.append(picture);
  if (box) {
    const frame = make("span", "gold-box");
    ["left", "top", "width", "height"].forEach((edge, i) => (frame.style[edge] = `${box[i]}%`));
    frame.title = boxTitle;
    shot.append(frame);
  }
  addPoint(shot, "gold-point", point, pointTitle);
}

function addPoint(shot, className, point, title) {
  if (!point) return;
  const mark = make("span", `point ${className}`);
  [mark.style.left, mark.style.top] = point.map((thousandths) => `${thousandths / 10}%`);
  mark.title = `${title} [${point.join(", ")}]`;
  shot.append(mark);
}

// The viewer: arrows, on the keyboard or its buttons, turn by one step.
const viewer = byId("viewer");
function onTurn(turn) {
  viewer.addEventListener("click", (event) => {
    const button = event.target.closest("[data-go]");
    if (event.target === viewer || (button && button.dataset.go === "0")) viewer.close();
    else if (button) turn(Number(button.dataset.go));
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") turn(-1);
    if (event.key === "ArrowRight") turn(1);
  });
}

function addOptions(select, values) {
  select.append(...[...new Set(values)].filter(Boolean).sort().map((value) => new Option(value, value)));
}
