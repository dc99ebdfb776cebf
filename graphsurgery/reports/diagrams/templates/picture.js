const facts = JSON.parse(document.getElementById("facts").textContent);
const main = document.querySelector("main"), card = document.getElementById("card");
const keys = [...document.querySelectorAll("[data-key]")], find = document.getElementById("find");
const pictures = [...document.querySelectorAll(".picture")].map(svg => ({
  svg, boxes: [...svg.querySelectorAll(".box")], routes: [...svg.querySelectorAll(".route")],
  width: svg.viewBox.baseVal.width, height: svg.viewBox.baseVal.height,
}));
let shown = 0, scale = 1;

function light(test) {
  pictures.forEach(({svg, boxes}, p) => {
    let any = false;
    boxes.forEach((box, i) => { const lit = test(box, facts.pictures[p][i]); box.classList.toggle("lit", lit); any ||= lit; });
    svg.classList.toggle("dimmed", any);
  });
}

function choose(number) {
  const {boxes, routes} = pictures[shown], rows = document.getElementById("details");
  boxes.forEach((box, i) => box.classList.toggle("chosen", i === number));
  routes.forEach(route => route.classList.toggle("chosen", route.dataset.ends.split(" ").includes(String(number))));
  card.hidden = number === null;
  if (number === null) return;
  document.getElementById("name").textContent = boxes[number].querySelector("text").textContent;
  rows.replaceChildren(...Object.entries(facts.pictures[shown][number]).map(([key, value]) => {
    const row = document.createElement("tr");
    for (const text of [key, value]) row.appendChild(document.createElement("td")).textContent = text;
    return row;
  }));
}

function pick(key) {
  const again = key.classList.contains("chosen");
  keys.forEach(other => other.classList.toggle("chosen", other.dataset.key === key.dataset.key && !again));
  light(box => !again && box.dataset.keys.split(" ").includes(key.dataset.key));
}

function pressed(element, act) {
  element.addEventListener("click", act);
  element.addEventListener("keydown", event => { if (event.key === "Enter") act(); });
}

function resize(to) {
  const {svg, width, height} = pictures[shown];
  scale = Math.max(0.02, Math.min(4, to));
  svg.setAttribute("width", width * scale);
  svg.setAttribute("height", height * scale);
}

function readable() {
  const {width, boxes} = pictures[shown];
  resize(Math.max(0.45, Math.min(1, (main.clientWidth - 40) / width)));
  main.scrollTo((main.scrollWidth - main.clientWidth) / 2, 0);
}

function fit() {
  const {width, height} = pictures[shown];
  resize(Math.min(1, (main.clientWidth - 34) / width, (main.clientHeight - 40) / height));
}

function show(number) {
  choose(null);
  shown = number;
  pictures.forEach(({svg}, i) => svg.toggleAttribute("hidden", i !== number));
  readable();
}

pictures.forEach(({boxes}) => boxes.forEach((box, i) => pressed(box, () => choose(i))));
keys.forEach(key => pressed(key, () => pick(key)));
find.addEventListener("input", () => {
  const words = find.value.trim().toLowerCase();
  keys.forEach(key => key.classList.remove("chosen"));
  light((box, details) => words !== "" && (box.textContent + Object.values(details).join(" ")).toLowerCase().includes(words));
  pictures[shown].svg.querySelector(".lit")?.scrollIntoView({block: "center", inline: "center"});
});
document.getElementById("tools").addEventListener("submit", event => event.preventDefault());
document.getElementById("close").addEventListener("click", () => choose(null));
document.getElementById("larger").addEventListener("click", () => resize(scale * 1.25));
document.getElementById("smaller").addEventListener("click", () => resize(scale * 0.8));
document.getElementById("fit").addEventListener("click", fit);
document.getElementById("fold")?.addEventListener("change", event => show(event.target.checked ? 0 : 1));
readable();
