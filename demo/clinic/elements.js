// Lists what a person can use or read on the visible page.
// ({limit}) => [{role, name, bbox: [x1, y1, x2, y2]}], interactive first: what recordings keep.
// ({rows, places}) => all of them, texts too, as targets of actions: [{names, bbox, group, isClickable, isText, place}].
//   rows: selector of elements that are named by each of their lines.
//   places: {name: [selector, n, index]}: the index-th of the elements that fit, where just n do (0: any number).
//   Targets of one group are parts of one thing to click.
({limit, rows, places}) => {
  const INTERACTIVE = "a[href], a[data-role], a.ui-link-inherit, button, input:not([type=hidden]), select, textarea, [role=button], [role=tab]," +
    " [role=menuitem], [role=option], [role=checkbox], [role=switch], [role=slider], [role=combobox], [contenteditable=true], canvas";
  const READABLE = "h1, h2, h3, h4, h5, h6, label, th, legend, [data-role=list-divider], [role=heading], [role=dialog] p";
  const width = window.innerWidth, height = window.innerHeight;
  const findsTargets = limit === undefined, maxLength = findsTargets ? 2000 : 60;

  const clean = (text) => (text || "").replace(/\s+/g, " ").trim().slice(0, maxLength);

  const labelOf = (element) => clean(element.labels && element.labels.length ? element.labels[0].innerText : "");

  const nameOf = (element) => clean(element.getAttribute("aria-label")) || clean(element.innerText) || labelOf(element) ||
    clean(element.placeholder) || clean(element.title) || clean(element.alt) || clean(element.getAttribute("data-cy")) ||
    (element.tagName === "CANVAS" ? "image" : clean(element.type === "submit" || element.type === "button" ? element.value : ""));

  const roleOf = (element, isInteractive) => {
    const tag = element.tagName.toLowerCase(), type = (element.type || "").toLowerCase();
    if (element.getAttribute("role")) return element.getAttribute("role");
    if (tag === "canvas") return "image";
    if (tag === "textarea" || (tag === "input" && !["checkbox", "radio", "button", "submit", "file"].includes(type))) return "textbox";
    if (tag === "input" && ["checkbox", "radio"].includes(type)) return type;
    if (tag === "a") return "link";
    if (/^h[1-6]$/.test(tag)) return "heading";
    if (!isInteractive) return tag === "label" ? "label" : "text";
    return tag === "select" ? "combobox" : "button";
  };

  const visiblePart = (element) => {
    const rect = element.getBoundingClientRect();
    const box = [Math.max(0, rect.left), Math.max(0, rect.top), Math.min(width, rect.right), Math.min(height, rect.bottom)];
    if (box[2] - box[0] < 4 || box[3] - box[1] < 4) return null;
    const style = getComputedStyle(element);
    return style.visibility === "hidden" || style.display === "none" ? null : box;
  };

  const visibleBox = (element) => {
    const box = visiblePart(element);
    if (!box) return null;
    const hit = document.elementFromPoint((box[0] + box[2]) / 2, (box[1] + box[3]) / 2);
    const isPage = findsTargets && hit && hit.contains(document.body);  // behind something that takes every click
    const isHit = hit && !isPage && (element.contains(hit) || hit.contains(element) ||
      (findsTargets && [...(element.labels || [])].some(label => label.contains(hit))));
    return isHit ? box.map(Math.round) : null;
  };

  const isPointer = (node) => node && getComputedStyle(node).cursor === "pointer";

  const found = [], seen = new Set();
  const add = (element, isInteractive) => {
    const bbox = visibleBox(element), name = nameOf(element);
    if (!bbox || !name) return;
    const key = name + "@" + bbox.map(value => Math.round(value / 16)).join(",");
    if (seen.has(key)) return;
    seen.add(key);
    found.push({role: roleOf(element, isInteractive), name, bbox, isInteractive, element});
  };
  document.querySelectorAll(INTERACTIVE).forEach(element => add(element, true));
  document.querySelectorAll("div, li, span, tr, svg").forEach(element => {
    if (isPointer(element) && !isPointer(element.parentElement)) add(element, true);
  });
  document.querySelectorAll(READABLE).forEach(element => add(element, false));
  if (!findsTargets) {
    return found.slice(0, limit).sort((a, b) => a.bbox[1] - b.bbox[1] || a.bbox[0] - b.bbox[0])
      .map(({role, name, bbox}) => ({role, name, bbox}));
  }

  const listed = new Set(rows ? document.querySelectorAll(rows) : []);
  const rowOf = (element) => {
    for (let node = element; node; node = node.parentElement) if (listed.has(node)) return node;
    return null;
  };
  const linesOf = (row) => [...row.querySelectorAll("h1, h3, p")].map(line => clean(line.innerText)).filter(Boolean);
  const isOwnText = (element) => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  document.querySelectorAll("body *").forEach(element => {
    if (isOwnText(element) || element.hasAttribute("aria-label")) add(element, false);
  });
  listed.forEach(row => {
    const bbox = visibleBox(row);
    if (bbox) found.push({names: linesOf(row), bbox, element: row});
  });
  const clickableOf = (element) => {
    const label = element.closest("label");
    let node = (label && label.control) || element.closest(INTERACTIVE);
    if (!node && isPointer(element)) for (node = element; isPointer(node.parentElement);) node = node.parentElement;
    return rowOf(node || element) || node;
  };
  // A name inside a link, button, label or row stands for the whole of it.
  const boxOf = (element, own) => {
    const label = ["radio", "checkbox"].includes(element.type) && element.labels && element.labels[0];
    return visibleBox(rowOf(element) || label || element.closest("label, " + INTERACTIVE) || element) || own;
  };
  const groups = new Map();
  const groupOf = (thing) => groups.get(thing) ?? groups.set(thing, groups.size).get(thing);
  const isText = (element) => element.matches("textarea, [contenteditable=true], [role=textbox]") ||
    (element.tagName === "INPUT" && roleOf(element, true) === "textbox" && !element.disabled && !element.readOnly);
  const targets = found.map(({name, names, bbox, element}) => {
    const clickable = clickableOf(element);
    const isAround = (other) => other.element !== element && other.name === name && element.contains(other.element);
    return {names: names || [name], bbox: boxOf(element, bbox), group: groupOf(clickable || element),
      isClickable: !!clickable && !found.some(isAround), isText: isText(element), place: null};
  });
  for (const [name, [selector, n, index]] of Object.entries(places || {})) {
    const elements = [...document.querySelectorAll(selector)].filter(visiblePart);
    if (n && elements.length !== n) continue;
    (n ? [elements[index]] : elements).forEach(element => targets.push({
      names: [name], bbox: element === document.documentElement ? [0, 0, width, height] : visiblePart(element).map(Math.round),
      group: groupOf(element), isClickable: true, isText: isText(element), place: name,
    }));
  }
  return targets;
}
