const plan = facts.plan, whole = plan.spaces.map(space => space.size);
const sliders = [...document.querySelectorAll("input.width")], all = document.getElementById("keep");
const steps = document.getElementById("step"), line = document.getElementById("command");
let widths = [...whole], keep = 1, step = plan.step;

// What a number of parameters or multiply-accumulates is at these widths: a sum of products.
function value(terms, at) {
  return terms.reduce((sum, [coefficient, ...spaces]) => sum + spaces.reduce((product, s) => product * at[s], coefficient), 0);
}

const macsOf = (box, at) => box.macs.reduce((sum, [over, terms]) => sum + Math.floor(value(terms, at) / over), 0);

// The time of every operator, times what is left of it by each space that was cut; straight lines between measurements.
function milliseconds(at) {
  const {operators, other, spaces} = plan.latency, times = [...operators];
  for (const [space, {operators: touched, points, shares}] of Object.entries(spaces)) {
    const width = at[space];
    if (width >= whole[space]) continue;
    const place = Math.max(0, Math.min(points.length - 2, points.findIndex(point => point >= width) - 1));
    const part = (width - points[place]) / (points[place + 1] - points[place]);
    touched.forEach((operator, i) => {
      times[operator] *= shares[place][i] + part * (shares[place + 1][i] - shares[place][i]);
    });
  }
  return (times.reduce((sum, time) => sum + time, 0) + other) / 1000;
}

function totals(at) {
  const boxes = plan.pictures[0], sum = of => boxes.reduce((total, box) => total + of(box), 0);
  return {
    parameters: sum(box => value(box.parameters, at)) + plan.held.parameters,
    MACs: sum(box => macsOf(box, at)),
    size: value(plan.bytes, at) + plan.held.bytes,
    ...(plan.latency && {latency: milliseconds(at)}),
  };
}

// As `compress` rounds: to the nearest multiple, halves to the even one, at least one multiple, at most all.
function multiple(number) {
  const low = Math.floor(number), over = number - low;
  return (over < 0.5 || (over === 0.5 && low % 2 === 0) ? low : low + 1) * step;
}
const rounded = (size, share) => Math.min(size, Math.max(multiple(share * size / step), Math.min(step, size), 1));
const shared = (space, share) => space.shared ? rounded(space.size, share) : space.size;
const snapped = (size, width) => width >= size ? size : rounded(size, width / size);

const quoted = word => /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`;

// The shorter of two ways to say the widths: each by its name, or those that differ from a share of all.
function command() {
  const named = base => plan.spaces.flatMap(({name}, i) => widths[i] === base[i] ? [] : ["--keep-space", `${name}=${widths[i]}`]);
  const alone = named(whole), besides = named(plan.spaces.map(space => shared(space, keep)));
  if (!alone.length) return [];
  const rounding = step > 1 ? ["--round-to", String(step)] : [];
  const way = keep < 1 && besides.length < alone.length ? ["--keep", String(keep), ...rounding, ...besides] : alone;
  return [...plan.command, ...way, "-o", plan.output].map(quoted);
}

function short(number) {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (number >= 0.9995 * size) return `${Number((number / size).toPrecision(3))} ${unit}`;
  }
  return String(number);
}

const texts = {
  size: number => `${short(number)}B`,
  latency: number => `${number.toPrecision(4)} ms`,
};

function showTotals() {
  const before = totals(whole), after = totals(widths);
  for (const row of document.querySelectorAll("[data-total]")) {
    const name = row.dataset.total, text = texts[name] ?? (number => number.toLocaleString("en-US"));
    const [now, planned, ratio] = row.querySelectorAll("td");
    [now.textContent, planned.textContent] = [text(before[name]), text(after[name])];
    [now.dataset.value, planned.dataset.value] = [before[name], after[name]];
    ratio.textContent = before[name] ? `${(after[name] / before[name]).toFixed(3)}x` : "";
  }
}

function showBoxes() {
  pictures.forEach(({boxes}, p) => {
    const costs = plan.pictures[p];
    boxes.forEach((box, i) => {
      const macs = macsOf(costs[i], widths), parameters = value(costs[i].parameters, widths);
      if (!parameters && !macs) return;
      const heat = box.querySelector(".heat"), before = box.querySelector(".before");
      if (heat && macs) heat.setAttribute("width", before.getAttribute("width") * macs / macsOf(costs[i], whole));
      const text = box.querySelector(".cost");
      if (text) text.textContent = [[parameters, "parameters"], [macs, "MACs"]].filter(([n]) => n).map(([n, what]) => `${short(n)} ${what}`).join(" · ");
    });
  });
}

function remember() {
  const asked = new URLSearchParams();
  if (keep < 1) asked.set("keep", keep);
  if (step !== plan.step) asked.set("round-to", step);
  plan.spaces.forEach((space, i) => { if (widths[i] !== shared(space, keep)) asked.append("keep-space", `${space.name}=${widths[i]}`); });
  const hash = asked.toString();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

function refresh() {
  sliders.forEach((slider, i) => {
    slider.value = widths[i];
    const row = slider.closest(".slider");
    row.classList.toggle("changed", widths[i] < whole[i]);
    row.querySelector("output").textContent = `${widths[i].toLocaleString("en-US")} of ${whole[i].toLocaleString("en-US")}`;
  });
  all.value = Math.round(100 * keep);
  steps.value = step;
  document.getElementById("share").textContent = `${Math.round(100 * keep)} %`;
  const words = command();
  // An option and its value are never parted.
  line.replaceChildren(...words.join(" ").split(/ (?=-)/).flatMap((word, i) => {
    const whole = document.createElement("span");
    whole.textContent = word;
    return i ? [" ", whole] : [whole];
  }));
  if (!words.length) line.textContent = "Move a slider, and the command that makes the cut stands here.";
  document.getElementById("copy").disabled = !words.length;
  showTotals();
  showBoxes();
}

function changed() {
  refresh();
  remember();
}

function share() { widths = plan.spaces.map(space => shared(space, keep)); }

// What the address asks for, in the words of the command line.
function recall() {
  const asked = new URLSearchParams(location.hash.slice(1)), at = Number(asked.get("keep"));
  step = [...steps.options].some(option => option.value === asked.get("round-to")) ? Number(asked.get("round-to")) : plan.step;
  keep = at > 0 && at < 1 ? Math.round(100 * at) / 100 : 1;
  share();
  for (const text of asked.getAll("keep-space")) {
    const cut = text.lastIndexOf("="), i = plan.spaces.findIndex(space => space.name === text.slice(0, cut)), n = Number(text.slice(cut + 1));
    if (i >= 0 && Number.isInteger(n) && n >= 1 && n <= whole[i]) widths[i] = n;
  }
  refresh();
}

sliders.forEach((slider, i) => slider.addEventListener("input", () => { widths[i] = snapped(whole[i], Number(slider.value)); changed(); }));
all.addEventListener("input", () => { keep = Number(all.value) / 100; share(); changed(); });
steps.addEventListener("change", () => {
  const alone = plan.spaces.map((space, i) => widths[i] !== shared(space, keep));
  step = Number(steps.value);
  widths = plan.spaces.map((space, i) => alone[i] ? snapped(space.size, widths[i]) : shared(space, keep));
  changed();
});
document.getElementById("reset").addEventListener("click", () => { keep = 1; share(); changed(); });
document.getElementById("copy").addEventListener("click", async event => {
  getSelection().selectAllChildren(line);
  try {
    await navigator.clipboard.writeText(line.textContent);
    event.target.textContent = "copied";
  } catch {
    event.target.textContent = "selected";
  }
  setTimeout(() => { event.target.textContent = "copy"; }, 1500);
});
window.addEventListener("hashchange", recall);
recall();
