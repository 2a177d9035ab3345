// One chart as SVG: axes, lines with bands, points with bars.
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "5 2 1 2 1 2", "14 4"];
const SHAPES = [
  "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M-4-4h8v8h-8z", "M0-5L5 4H-5z", "M0-5.5L5.5 0L0 5.5L-5.5 0z", "M-5-4H5L0 5z",
  "M-1.5-5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
];

function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(Math.min(2, digits - 1)).replace("e+", "e");
  return String(Number(value.toPrecision(digits)));
}

const withSpread = (y, s) => `${number(y)}${s === null || s === undefined ? "" : ` ± ${number(s, 2)}`}`;

function ticks(low, high, count, whole) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  let step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((k) => k >= rough * 0.999) ?? power;
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) found.push(Number((k * step).toPrecision(12)));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const k of high / low > 30 ? [1] : [1, 2, 5]) found.push(Number((k * 10 ** power).toPrecision(3)));
  }
  return found.filter((t) => t >= low && t <= high);
}

function extent(values, pad, clip) {
  let low = Infinity;
  let high = -Infinity;
  for (const v of values) { if (v < low) low = v; if (v > high) high = v; }
  if (low > high) return [0, 1];
  const room = (high - low || Math.abs(high) || 1) * pad;
  low -= room;
  high += room;
  return clip ? [Math.max(clip[0], low), Math.min(clip[1], high)] : [low, high];
}

const steps = (points) => points.map(([x, y], k) => `${k ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

/* spec: series [{colour, style, x[], y[], s[]|null, sx?, name}], xLabel, yLabel, whole (x in whole numbers), log (x),
   clip [low, high] of y, kind line|points|path, names {x: name}, label (for screen readers) */
function chart(width, height, spec) {
  const margin = { left: 50, right: 14, top: 24, bottom: 40 };
  const inner = [width - margin.left - margin.right, height - margin.top - margin.bottom];
  const all = spec.series.flatMap((s) => s.x.map((x, k) => ({ x, y: s.y[k], s: s.s?.[k] ?? 0, sx: s.sx?.[k] ?? 0 })));
  const xs = extent(all.flatMap((p) => (spec.log ? [p.x / 1.15, p.x * 1.15] : [p.x - p.sx, p.x + p.sx])), spec.kind === "line" || spec.log ? 0 : 0.06);
  if (xs[0] === xs[1]) { xs[0] -= 0.5; xs[1] += 0.5; }
  const ys = extent(all.flatMap((p) => [p.y - p.s, p.y + p.s]), 0.05, spec.clip);
  const f = spec.log ? Math.log10 : (v) => v;
  const px = (x) => margin.left + ((f(x) - f(xs[0])) / (f(xs[1]) - f(xs[0]))) * inner[0];
  const py = (y) => margin.top + (1 - (Math.min(ys[1], Math.max(ys[0], y)) - ys[0]) / (ys[1] - ys[0] || 1)) * inner[1];
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": spec.label });
  const bottom = margin.top + inner[1];
  for (const t of ticks(...ys, height / 60)) {
    root.append(svg("line", { class: "grid", x1: margin.left, x2: width - margin.right, y1: py(t), y2: py(t) }));
    root.append(svg("text", { x: margin.left - 6, y: py(t) + 4, "text-anchor": "end" }, number(t)));
  }
  const across = spec.log ? logTicks(...xs) : ticks(...xs, inner[0] / 70, spec.whole);
  for (const t of across) {
    root.append(svg("line", { class: "grid", x1: px(t), x2: px(t), y1: bottom, y2: bottom + 4 }));
    root.append(svg("text", { x: px(t), y: bottom + 17, "text-anchor": "middle" }, spec.names?.[t] ?? number(t)));
  }
  root.append(svg("text", { class: "quiet", x: 2, y: 12 }, spec.yLabel));
  root.append(svg("text", { class: "quiet", x: margin.left + inner[0] / 2, y: height - 5, "text-anchor": "middle" }, spec.xLabel));
  for (const series of spec.series) root.append(...drawn(series, spec.kind, px, py, width - margin.right));
  return { root, px, top: margin.top, bottom };
}

function drawn(series, kind, px, py, right) {
  const { x, y, s, sx, colour, style } = series;
  const points = x.map((v, k) => [px(v), py(y[k])]);
  const shape = (tag, attributes, ...children) => paint(svg(tag, attributes, ...children), colour);
  const title = (k) => svg("title", {}, `${series.name}: ${number(x[k])}, ${withSpread(y[k], s?.[k])}`);
  const found = [];
  if (kind === "line" && s) {
    const edge = (sign) => x.flatMap((v, k) => (s[k] === null ? [] : [[px(v), py(y[k] + sign * s[k])]]));
    if (edge(1).length > 1) found.push(shape("path", { class: "series band", d: `${steps(edge(1))}${steps(edge(-1).reverse()).replace("M", "L")}Z` }));
  }
  if (kind !== "points") found.push(shape("path", { class: kind === "path" ? "series faint" : "series", d: steps(points), "stroke-dasharray": DASHES[style % DASHES.length] }));
  points.forEach(([cx, cy], k) => {
    const last = k === points.length - 1;
    if (kind === "points" || points.length === 1) {
      if (s?.[k]) found.push(shape("line", { class: "series thin", x1: cx, x2: cx, y1: py(y[k] - s[k]), y2: py(y[k] + s[k]) }));
      if (sx?.[k]) found.push(shape("line", { class: "series thin", y1: cy, y2: cy, x1: px(x[k] - sx[k]), x2: px(x[k] + sx[k]) }));
    }
    if (kind === "points") found.push(shape("path", { class: "series mark", d: SHAPES[style % SHAPES.length], transform: `translate(${cx.toFixed(1)} ${cy.toFixed(1)})` }, title(k)));
    else if (points.length <= 40 || (kind === "path" && last)) {
      const open = kind === "path" && k === 0 && points.length > 1;
      const r = kind === "path" ? (last ? 4 : 2.2) : 2.6;
      found.push(shape("circle", { class: open ? "series open" : "series mark", cx: cx.toFixed(1), cy: cy.toFixed(1), r: open ? 3.5 : r }, title(k)));
    }
    if (kind === "path" && last && series.mark) {
      const left = cx > right - 40; // the text would leave the figure
      found.push(svg("text", { x: cx + (left ? -6 : 6), y: cy - 5, "text-anchor": left ? "end" : "start" }, series.mark));
    }
  });
  return found;
}
