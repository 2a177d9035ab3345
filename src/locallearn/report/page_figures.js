// The figures of the page: what is drawn follows the table of results.
const data = JSON.parse(byId("data").textContent);
const figures = [];

function chosen() {  // the groups that the table shows, in its order; a number tells those of one colour apart
  const limit = Number(byId("limit").value);
  const rows = [...byId("results-table").tBodies[0].rows].filter((row) => !row.hidden);
  const seen = new Map();
  const found = rows.slice(0, limit).map((row) => {
    const group = data.groups[Number(row.dataset.index)];
    const style = seen.get(group.colour[0]) ?? 0;
    seen.set(group.colour[0], style + 1);
    return { ...group, index: Number(row.dataset.index), style };
  });
  byId("drawn").textContent = `${found.length} of ${rows.length} drawn`;
  return found;
}

const seriesOf = (groups, values) => groups.flatMap((g) => {
  const v = values[g.index];
  return v && v.x.length ? [{ ...v, name: g.label, colour: g.colour, style: g.style }] : [];
});

const summary = (title, series) => {
  const ends = series.slice(0, 8).map((s) => `${s.name} ${withSpread(s.y.at(-1), s.s?.at(-1))}`);
  return `${title}. At the end: ${ends.join("; ") || "nothing recorded"}. The numbers are in the table below the figure.`;
};

function key(series, kind) {
  const sample = svg("svg", { viewBox: "0 0 30 12", "aria-hidden": "true" });
  if (kind === "points") sample.append(paint(svg("path", { class: "series mark", d: SHAPES[series.style % SHAPES.length], transform: "translate(15 6)" }), series.colour));
  else sample.append(paint(svg("path", { class: "series", d: "M1 6H29", "stroke-dasharray": DASHES[series.style % DASHES.length] }), series.colour));
  const value = el("span", {}, withSpread(series.y.at(-1), series.s?.at(-1)));
  return { item: el("li", {}, sample, el("span", {}, series.name), value), value, series };
}

function dataTable(caption, head, rows) {  // filled when it is opened
  const details = el("details", {}, el("summary", {}, "Numbers of this figure"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const cells = (values, tag, scope) => el("tr", {}, ...values.map((v, k) => (k ? el(tag, { class: "number" }, v) : el("th", { scope }, v))));
    const table = el("table", {}, el("caption", {}, caption), el("thead", {}, cells(head, "th", "col")), el("tbody", {}, ...rows().map((r) => cells(r, "td", "row"))));
    details.append(el("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": `${caption}, scrolls sideways` }, table));
  });
  return details;
}

function lineTable(caption, xLabel, series, names) {
  return dataTable(caption, [xLabel, ...series.map((s) => s.name)], () => {
    const xs = [...new Set(series.flatMap((s) => s.x))].sort((a, b) => a - b);
    const at = series.map((s) => new Map(s.x.map((x, k) => [x, withSpread(s.y[k], s.s?.[k])])));
    return xs.map((x) => [names?.[x] ?? number(x), ...at.map((m) => m.get(x) ?? "–")]);
  });
}

function lines(body, width, title, series, spec) {  // a chart, its legend with values at a chosen x, and its numbers
  if (!series.length) { body.append(el("p", { class: "note" }, "The groups shown have not recorded this.")); return; }
  const made = chart(width, Math.round(Math.min(340, Math.max(230, width * 0.55))), { ...spec, series, kind: "line", label: summary(title, series) });
  const keys = series.map((s) => key(s, "line"));
  const xs = [...new Set(series.flatMap((s) => s.x))].sort((a, b) => a - b);
  const cursor = svg("line", { class: "cursor", y1: made.top, y2: made.bottom, visibility: "hidden" });
  made.root.append(cursor);
  const slider = el("input", { type: "range", min: 0, max: xs.length - 1, value: xs.length - 1, "aria-label": `${spec.xLabel} of the values in the legend` });
  const place = el("span", {});
  const move = (moved) => {
    const x = xs[Number(slider.value)];
    const name = spec.names?.[x] ?? number(x);
    place.textContent = `${spec.xLabel} ${name}`;
    slider.setAttribute("aria-valuetext", `${spec.xLabel} ${name}`);
    if (moved) for (const [k, v] of [["x1", made.px(x)], ["x2", made.px(x)], ["visibility", "visible"]]) cursor.setAttribute(k, v);
    for (const { series: s, value } of keys) {
      const k = s.x.indexOf(x);
      value.textContent = k < 0 ? "–" : withSpread(s.y[k], s.s?.[k]);
    }
  };
  slider.addEventListener("input", () => move(true));
  move(false);
  body.append(made.root, ...(xs.length > 1 ? [el("label", { class: "slider" }, place, slider)] : []), el("ul", { class: "legend" }, ...keys.map((k) => k.item)));
  body.append(lineTable(title, spec.xLabel, series, spec.names));
}

function figure(title, selects, draw, wide = false) {
  const heading = el("h3", {}, title);
  const bar = el("div", { class: "controls" });
  const inputs = selects.map(([label, options]) => {
    const select = el("select", {}, ...options.map(([value, text]) => el("option", { value }, text)));
    if (options.length > 1) bar.append(el("label", {}, `${label} `, select));
    select.addEventListener("change", () => redraw());
    return select;
  });
  const body = el("div");
  const host = el("figure", wide ? { class: "wide" } : {}, heading, bar, body);
  const redraw = () => {
    const width = Math.max(260, body.clientWidth);
    body.replaceChildren();
    draw(body, width, chosen(), ...inputs.map((i) => i.value));
  };
  byId("charts").append(host);
  figures.push(redraw);
}

function panels(body, groups, count, draw) {
  const host = el("div", { class: "panels" });
  body.append(host);
  const width = Math.max(250, host.clientWidth);
  const columns = Math.max(1, Math.min(groups.length, Math.floor(width / 290)));
  for (const g of groups.slice(0, count)) {
    const panel = el("div", {}, el("p", {}, g.label));
    host.append(panel);
    draw(panel, Math.floor(width / columns) - 8, g);
  }
  if (groups.length > count) body.append(el("p", { class: "note" }, `The first ${count} of ${groups.length} groups.`));
}

const depths = (probe, perPlace) => Object.entries(perPlace ?? {}).map(([place, v]) => (
  { ...v, name: probe.names[place] ?? `${probe.place} ${place}`, mark: place, colour: probe.colours[place], style: 0 }));

function probeFigure(probe) {
  const views = [["depth", `last epoch, by ${probe.place}`], ["epochs", "over epochs"]];
  if (probe.plane) views.unshift(["plane", "the plane"]);
  const titles = Object.fromEntries(probe.quantities);
  figure(probe.title, [["View", views], ["Quantity", probe.quantities]], (body, width, groups, view, quantity) => {
    const own = groups.filter((g) => Object.keys(probe.values[quantity][g.index] ?? {}).length);
    const wanted = titles[quantity];
    body.parentElement.querySelector("label:nth-of-type(2)")?.toggleAttribute("hidden", view === "plane");
    if (!own.length) body.append(el("p", { class: "note" }, "The groups shown have not recorded this."));
    else if (view === "depth") lines(body, width, `${wanted} by ${probe.place} at the last epoch`, seriesOf(own, own.reduce((all, g) => {
      const places = Object.entries(probe.values[quantity][g.index]);
      all[g.index] = { x: places.map(([p]) => Number(p)), y: places.map(([, v]) => v.y.at(-1)), s: places.map(([, v]) => v.s?.at(-1) ?? null) };
      return all;
    }, {})), { xLabel: probe.place, yLabel: wanted, whole: true, names: probe.names });
    else if (view === "epochs") panels(body, own, 8, (panel, w, g) => {
      const series = depths(probe, probe.values[quantity][g.index]);
      const title = `${wanted} over epochs, ${g.label}`;
      panel.append(chart(w, 230, { series, kind: "line", xLabel: "epoch", yLabel: wanted, whole: true, label: summary(title, series) }).root);
      panel.append(el("ul", { class: "legend" }, ...series.map((s) => key(s, "line").item)), lineTable(title, "epoch", series));
    });
    else plane(body, probe, own);
  }, true);
}

function share(series) {  // paths that end in one place have their numbers in one text
  const spans = ["x", "y"].map((k) => { const all = series.flatMap((s) => s[k]); return Math.max(...all) - Math.min(...all) || 1; });
  const ends = [];
  for (const s of series) {
    const near = ends.find((e) => Math.abs(e.x.at(-1) - s.x.at(-1)) < 0.05 * spans[0] && Math.abs(e.y.at(-1) - s.y.at(-1)) < 0.06 * spans[1]);
    if (near) { near.mark += `, ${s.mark}`; s.mark = ""; } else ends.push(s);
  }
}

function plane(body, probe, groups) {
  body.append(el("p", { class: "note" }, "A path for each layer, from its first look (open) to its last (full, with the layer's number); means over seeds."));
  panels(body, groups, 8, (panel, w, g) => {
    const heights = probe.values.i_t_y[g.index] ?? {};
    const series = depths(probe, probe.values.i_x_t[g.index]).flatMap((s) => {
      const other = heights[s.mark];
      const both = s.x.flatMap((e, k) => (other?.x.includes(e) ? [[s.y[k], other.y[other.x.indexOf(e)]]] : []));
      return both.length ? [{ ...s, s: null, x: both.map((p) => p[0]), y: both.map((p) => p[1]) }] : [];
    });
    const title = `Information plane, ${g.label}`;
    share(series);
    panel.append(chart(w, 250, { series, kind: "path", xLabel: "I(X;T) [bits]", yLabel: "I(T;Y) [bits]", label: summary(title, series) }).root);
    panel.append(dataTable(title, ["layer", "I(X;T) first", "I(T;Y) first", "I(X;T) last", "I(T;Y) last"], () => series.map((s) => (
      [s.name, ...[0, -1].flatMap((k) => [number(s.x.at(k)), number(s.y.at(k))])]))));
  });
}

function tradeOff(body, width, groups, quantity) {
  const axis = data.trade.axes.find((a) => a.key === quantity);
  const series = seriesOf(groups, axis.values);
  if (!series.length) { body.append(el("p", { class: "note" }, "The groups shown have not recorded this.")); return; }
  const xs = series.map((s) => s.x[0]);
  const log = Math.min(...xs) > 0 && Math.max(...xs) > 8 * Math.min(...xs);
  const title = `${data.trade.label} against ${axis.label}`;
  const said = series.slice(0, 8).map((s) => `${s.name} ${number(s.x[0])}, ${withSpread(s.y[0], s.s?.[0])}`);
  const label = `${title}. ${said.join("; ")}. The numbers are in the table below the figure.`;
  body.append(chart(width, Math.round(Math.min(340, Math.max(230, width * 0.55))), { series, kind: "points", log, xLabel: axis.label, yLabel: data.trade.label, label }).root);
  body.append(el("ul", { class: "legend" }, ...series.map((s) => key(s, "points").item)));
  body.append(dataTable(title, ["group", axis.label, data.trade.label], () => series.map((s) => [s.name, withSpread(s.x[0], s.sx?.[0]), withSpread(s.y[0], s.s?.[0])])));
}

function start() {
  themed();
  document.querySelectorAll(".dot").forEach((dot) => paint(dot, data.groups[Number(dot.dataset.colour)].colour));
  const redraw = () => figures.forEach((draw) => draw());
  document.querySelectorAll("table[id]").forEach((table) => {
    const changed = table.id === "results-table" ? redraw : () => {};
    sortable(table, changed);
    const form = document.querySelector(`form[data-for="${table.id}"]`);
    if (form) filterable(table, form, changed);
  });
  if (data.curves.length) figure("Learning curves", [["Quantity", data.curves.map((c) => [c.key, c.label])]], (body, width, groups, quantity) => {
    const curve = data.curves.find((c) => c.key === quantity);
    lines(body, width, `${curve.label} over epochs`, seriesOf(groups, curve.values), { xLabel: "epoch", yLabel: curve.label, whole: true });
  });
  if (data.trade.axes.length) figure("What it costs", [["Against", data.trade.axes.map((a) => [a.key, a.label])]], tradeOff);
  data.probes.forEach(probeFigure);
  byId("limit").addEventListener("change", redraw);
  let before = 0;
  new ResizeObserver(() => {
    const width = byId("charts").clientWidth;
    if (Math.abs(width - before) > 1) { before = width; redraw(); }
  }).observe(byId("charts"));
}

start();
