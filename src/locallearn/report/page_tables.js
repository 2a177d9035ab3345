// Tables: sorted by the buttons in their headings, filtered by the form above them. Text goes in as text, never as HTML.
const byId = (id) => document.getElementById(id);
const later = (work, wait) => {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(work, wait); };
};

function paint(element, colour) {  // [in light, in dark]; a style attribute would be refused by the page's policy
  element.style.setProperty("--light", colour[0]);
  element.style.setProperty("--dark", colour[1]);
  return element;
}

function sortable(table, changed) {
  const body = table.tBodies[0];
  const words = new Intl.Collator(undefined, { numeric: true });
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const down = heading.getAttribute("aria-sort") === "ascending";
    const numeric = heading.classList.contains("number");
    const rows = [...body.rows].map((row) => [row.cells[column].dataset.value, row]);
    const order = (a, b) => (numeric ? Number(a) - Number(b) : words.compare(a, b)) * (down ? -1 : 1);
    rows.sort(([a], [b]) => (a === "") - (b === "") || (a === "" ? 0 : order(a, b)));  // what is missing comes last
    body.append(...rows.map(([, row]) => row));
    headings.forEach((other) => other.setAttribute("aria-sort", "none"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    changed();
  }));
}

function filterable(table, form, changed) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [row, row.textContent.toLowerCase(), JSON.parse(row.dataset.keys)]);
  const text = form.querySelector("[data-filter]");
  const choices = [...form.querySelectorAll("select[data-key]")];
  const count = form.querySelector("[data-count]");
  const apply = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = choices.filter((choice) => choice.value !== "");
    let shown = 0;
    for (const [row, content, keys] of rows) {
      const match = words.every((word) => content.includes(word)) && wanted.every((c) => keys[c.dataset.key] === c.value);
      row.hidden = !match;
      shown += match;
    }
    count.textContent = `${shown} of ${rows.length} shown`;
    changed();
  };
  form.addEventListener("input", later(apply, 120));
  form.addEventListener("submit", (event) => { event.preventDefault(); apply(); });
  form.addEventListener("reset", () => setTimeout(apply));
  text.addEventListener("keydown", (event) => { if (event.key === "Escape") { text.value = ""; apply(); } });
  count.textContent = `${rows.length} of ${rows.length} shown`;
}

function themed() {
  const choice = byId("theme");
  const show = () => {
    if (choice.value) document.documentElement.dataset.theme = choice.value;
    else delete document.documentElement.dataset.theme;
  };
  try { choice.value = localStorage.getItem("locallearn-theme") ?? ""; } catch { /* a browser may refuse storage to files */ }
  choice.addEventListener("change", () => {
    show();
    try { localStorage.setItem("locallearn-theme", choice.value); } catch { /* then it lasts until the page is closed */ }
  });
  show();
}
