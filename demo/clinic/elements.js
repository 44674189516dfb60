// Lists what a person can use or read on the visible page: [{role, name, bbox: [x1, y1, x2, y2]}], interactive first.
(limit) => {
  const INTERACTIVE = "a[href], a[data-role], a.ui-link-inherit, button, input:not([type=hidden]), select, textarea, [role=button], [role=tab]," +
    " [role=menuitem], [role=option], [role=checkbox], [role=switch], [role=slider], [role=combobox], [contenteditable=true], canvas";
  const READABLE = "h1, h2, h3, h4, h5, h6, label, th, legend, [data-role=list-divider], [role=heading], [role=dialog] p";
  const width = window.innerWidth, height = window.innerHeight;

  const clean = (text) => (text || "").replace(/\s+/g, " ").trim().slice(0, 60);

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

  const visibleBox = (element) => {
    const rect = element.getBoundingClientRect();
    const box = [Math.max(0, rect.left), Math.max(0, rect.top), Math.min(width, rect.right), Math.min(height, rect.bottom)];
    if (box[2] - box[0] < 4 || box[3] - box[1] < 4) return null;
    const style = getComputedStyle(element);
    if (style.visibility === "hidden" || style.display === "none") return null;
    const hit = document.elementFromPoint((box[0] + box[2]) / 2, (box[1] + box[3]) / 2);
    if (!hit || !(element.contains(hit) || hit.contains(element))) return null;
    return box.map(Math.round);
  };

  const found = [], seen = new Set();
  const add = (element, isInteractive) => {
    const bbox = visibleBox(element), name = nameOf(element);
    if (!bbox || !name) return;
    const key = name + "@" + bbox.map(value => Math.round(value / 16)).join(",");
    if (seen.has(key)) return;
    seen.add(key);
    found.push({role: roleOf(element, isInteractive), name, bbox, isInteractive});
  };
  document.querySelectorAll(INTERACTIVE).forEach(element => add(element, true));
  document.querySelectorAll("div, li, span, tr, svg").forEach(element => {
    const isPointer = (node) => node && getComputedStyle(node).cursor === "pointer";
    if (isPointer(element) && !isPointer(element.parentElement)) add(element, true);
  });
  document.querySelectorAll(READABLE).forEach(element => add(element, false));
  return found.slice(0, limit).sort((a, b) => a.bbox[1] - b.bbox[1] || a.bbox[0] - b.bbox[0])
    .map(({role, name, bbox}) => ({role, name, bbox}));
}
