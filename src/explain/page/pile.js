  // ---- The pile and the slider ----
  const slider = $("slider");
  slider.max = TOP;
  slider.value = TOP;
  const most = Math.max(1, ...data.layers.map((l) => l.bytes));
  data.layers.forEach((l, index) => {
    const item = document.createElement("li"), button = text("button"), head = text("b");
    button.type = "button";
    button.style.borderLeftColor = l.colour;
    head.append(text("span", "number", l.label));
    if (l.label !== l.name) head.append(text("span", "step", l.name));
    const did = [[l.added, "added"], [l.changed, "changed"], [l.deleted, "deleted"]].filter((d) => d[0]);
    button.append(head, text("small", "", human(l.bytes) + (l.wasted ? ", " + human(l.wasted) + " wasted" : "") +
      (did.length ? " · " + did.map((d) => d[0].toLocaleString("en") + " " + d[1]).join(", ") : "")));
    const meter = text("span", "meter"), used = text("i", "used"), wasted = text("i", "wasted");
    used.style.width = (l.bytes - l.wasted) / most * 100 + "%";
    used.style.background = l.colour;
    wasted.style.width = l.wasted / most * 100 + "%";
    meter.append(used, wasted);
    button.append(meter);
    button.title = l.path;
    button.addEventListener("click", () => seeUpTo(index + 1));
    item.append(button);
    $("bands").prepend(item);
  });
  function bands() {
    [...$("bands").children].forEach((item, index) => {
      const number = TOP - index, button = item.firstChild;
      button.setAttribute("aria-pressed", number === top ? "true" : "false");
      button.classList.toggle("out", number > top || (alone && number !== top));
    });
    const name = data.layers[top - 1].name;
    const said = alone ? title(top) + ", nothing else: " + name
      : top === TOP ? "all " + TOP + " layers: the merged view" : title(top) + (top === 1 ? " alone: " : " and those below it: ") + name;
    $("seen").textContent = said;
    slider.setAttribute("aria-valuetext", said);
  }
  function seeUpTo(number) {
    if (number === top) return;
    top = number;
    slider.value = number;
    all();
  }
  slider.addEventListener("input", () => seeUpTo(Number(slider.value)));
  $("mode").addEventListener("change", (event) => seeAlone(event.target.value === "alone"));
  function seeAlone(to) {
    if (alone === to) return;
    alone = to;
    for (const choice of $("mode").querySelectorAll("input")) choice.checked = (choice.value === "alone") === to;
    all();
  }

  // ---- The history of a place ----
  function modeOf(mode) { return mode.toString(8).padStart(4, "0"); }
  function holdingOf(h) {
    const number = layer(h), item = document.createElement("li"), by = hiddenBy(h), k = kind(h), merged = flags(h) & MERGED;
    const seen = from(h) <= top && (by === 0 || by > top);
    const did = !k ? "deleted" : merged ? "" : replaces(h) ? "changed" : "added";
    item.className = did + (seen && k ? " shown" : "") + (by && by <= top ? " hidden" : "");
    const head = text("b", "", title(number).replace(/^./, (c) => c.toUpperCase()) + ": " + data.layers[number - 1].name);
    head.prepend(spot(number));
    item.append(head);
    const what = [];
    if (!k) what.push(replaces(h) ? "a whiteout: deletes what " + title(replaces(h)) + " has" : "a whiteout that deletes nothing");
    else {
      what.push(KINDS[k] + (k === FILE ? " of " + human(size(h)) : k === SYMLINK && targets.has(h) ? " to " + targets.get(h) : "") +
        ", mode " + modeOf(words[h * WORDS + 6]) + ", " + new Date((words[h * WORDS + 7] + data.epoch) * 1000).toISOString().slice(0, 16).replace("T", " "));
      if (flags(h) & OPAQUE) what.push("opaque: nothing of the layers below is seen in it");
      else if (merged) what.push("merged with the directory of " + title(replaces(h)));
      else if (replaces(h)) what.push("replaces what " + title(replaces(h)) + " has");
    }
    if (from(h) !== number) what.push("seen here from " + title(from(h)) + " on, which has renamed it");
    if (number > top) what.push("above the layers seen");
    else if (by && by <= top) what.push("hidden by " + title(by) + (k === FILE && !(flags(h) & USED) ? ": its bytes are wasted" : ""));
    else if (k) what.push("seen");
    for (const line of what) item.append(text("span", "", line), document.createElement("br"));
    item.lastChild.remove();
    return item;
  }
  function history(p) {
    if (!p) return;
    const list = document.createElement("ol");
    for (let h = first[p]; h < first[p + 1]; h++) list.append(holdingOf(h));
    const head = text("p"), code = text("code", "", "/" + pathOf(p));
    head.append(code);
    $("history").replaceChildren(head, list);
  }
  /** On a phone the history lies over the tree: a tap raises it. */
  function raiseDetail() { document.body.classList.add("raised"); }
  function lowerDetail() {
    if (!document.body.classList.contains("raised")) return;
    document.body.classList.remove("raised");
    if ($("detail").contains(document.activeElement)) tree.focus({ preventScroll: true });
  }
  $("lower").addEventListener("click", lowerDetail);

  // ---- Tabs, waste, theme ----
  const tabs = ["tree", "waste", "picture"];
  function showTab(name) {
    for (const tab of tabs) {
      const chosen = tab === name, button = $("tab-" + tab);
      button.setAttribute("aria-selected", chosen ? "true" : "false");
      button.tabIndex = chosen ? 0 : -1;
      $("view-" + tab).hidden = !chosen;
    }
    // The picture has the layers in it, and needs the room.
    $("columns").classList.toggle("picture", name === "picture");
    lowerDetail();
    if (name === "picture") begunPicture();
  }
  tabs.forEach((tab, index) => {
    $("tab-" + tab).addEventListener("click", () => showTab(tab));
    $("tab-" + tab).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: tabs.length - 1 }[event.key];
      if (!step) return;
      const next = tabs[(index + step) % tabs.length];
      showTab(next);
      $("tab-" + next).focus();
    });
  });
  $("waste-caption").textContent = data.sentence + "." + (data.unreadable ? " Directories that could not be read: " + data.unreadable + "." : "");
  $("no-waste").hidden = data.wastes.length > 0;
  $("waste-table").hidden = data.wastes.length === 0;
  /** Shows a place that is wasted, with the layers with which that is seen. */
  function showWaste(p, steps, replaced) {
    $("search").value = query = "";
    document.querySelectorAll("#filter input").forEach((box) => {
      if (box.value < HIDDEN) box.checked = wanted[Number(box.value)] = true;
    });
    seeAlone(false);
    // What is deleted is seen as such with the layer that deletes it on top.
    const goal = replaced ? TOP : steps[0][1];
    if (goal !== top) { top = goal; slider.value = goal; }
    compute();
    bands();
    select();
    showTab("tree");
    reveal(p);
    refresh();
    tree.focus();
    moveTo(p);
    raiseDetail();
  }
  for (const [p, steps, lost, files, replaced] of data.wastes) {
    const row = document.createElement("tr"), cell = document.createElement("td"), button = text("button", "", "/" + pathOf(p));
    button.type = "button";
    button.addEventListener("click", () => showWaste(p, steps, replaced));
    cell.append(button);
    const path = text("td");
    steps.forEach(([held, hider], index) => {
      path.append(index ? ", " : "", spot(held), label(held) + " → ", spot(hider), label(hider));
    });
    path.append(replaced ? " (replaced)" : " (deleted)");
    row.append(text("td", "", human(lost)), text("td", "", files.toLocaleString("en")), path, cell);
    $("wastes").append(row);
  }
  $("sentence").textContent = counted(TOP, "layer. ", "layers. ") + data.sentence + ".";
  for (const [word, fact] of data.facts) {
    const pair = text("div");
    pair.append(text("dt", "", word), text("dd", "", fact));
    pair.lastChild.title = fact;
    $("facts").append(pair);
  }

  const dark = matchMedia("(prefers-color-scheme: dark)");
  let theme = dark.matches ? "dark" : "light";
  function paintTheme() {
    document.documentElement.dataset.theme = theme;
    $("theme").textContent = theme === "dark" ? "Light" : "Dark";
    $("theme").setAttribute("aria-label", theme === "dark" ? "Light: switch to light colours" : "Dark: switch to dark colours");
  }
  dark.addEventListener("change", () => { theme = dark.matches ? "dark" : "light"; paintTheme(); });
  $("theme").addEventListener("click", () => { theme = theme === "dark" ? "light" : "dark"; paintTheme(); });
  paintTheme();

