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
    const did = [[l.added, "page.did_add"], [l.changed, "page.did_change"], [l.deleted, "page.did_delete"]].filter((d) => d[0]);
    const size = [human(l.bytes), l.wasted && say("page.wasted", { size: human(l.wasted) })].filter(Boolean).join(say("page.comma"));
    button.append(head, text("small", "", size +
      (did.length ? " · " + did.map(([count, key]) => say(key, { count: number(count) })).join(say("called.comma")) : "")));
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
    const key = alone ? "page.seen_alone" : top === TOP ? "page.seen_all" : top === 1 ? "page.seen_lowest" : "page.seen_pile";
    const said = say(key, { layer: title(top), name: data.layers[top - 1].name, count: TOP });
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
    const of = layer(h), item = document.createElement("li"), by = hiddenBy(h), k = kind(h), merged = flags(h) & MERGED;
    const seen = from(h) <= top && (by === 0 || by > top);
    const did = !k ? "deleted" : merged ? "" : replaces(h) ? "changed" : "added";
    item.className = did + (seen && k ? " shown" : "") + (by && by <= top ? " hidden" : "");
    const head = text("b", "", title(of).replace(/^./, (c) => c.toUpperCase()) + say("page.colon") + data.layers[of - 1].name);
    head.prepend(spot(of));
    item.append(head);
    const what = [];
    if (!k) what.push(replaces(h) ? ofLayer("page.whiteout", replaces(h)) : say("page.whiteout_of_nothing"));
    else {
      const it = k === FILE ? say("page.sized", { kind: kindOf(h), size: human(size(h)) })
        : k === SYMLINK && targets.has(h) ? say("page.leads", { kind: kindOf(h), target: targets.get(h) }) : kindOf(h);
      const time = new Date((words[h * WORDS + 7] + data.epoch) * 1000).toISOString().slice(0, 16).replace("T", " ");
      what.push(say("page.entry", { what: it, mode: modeOf(words[h * WORDS + 6]), time }));
      if (flags(h) & OPAQUE) what.push(say("page.opaque"));
      else if (merged) what.push(ofLayer("page.merged", replaces(h)));
      else if (replaces(h)) what.push(ofLayer("fate.replaces", replaces(h)));
    }
    if (from(h) !== of) what.push(ofLayer("page.renamed", from(h)));
    if (of > top) what.push(say("page.above_seen"));
    else if (by && by <= top) what.push(ofLayer(k === FILE && !(flags(h) & USED) ? "page.hidden_wasted" : "fate.hidden", by));
    else if (k) what.push(say("fate.seen"));
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
  $("waste-caption").textContent = say(data.unreadable ? "page.unreadable" : "layers.end", { sentence: data.sentence, count: data.unreadable });
  $("no-waste").hidden = data.wastes.length > 0;
  $("why").hidden = data.wastes.length === 0;
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
  function wasteButton(path, p, steps, replaced) {
    const button = text("button", "", path);
    button.type = "button";
    button.addEventListener("click", () => showWaste(p, steps, replaced));
    return button;
  }
  for (const cause of data.causes) {
    const item = text("li"), head = text("b", "", human(cause.bytes) + say("page.comma") + counted("file", cause.files) + " ");
    // The place is still there where something else has taken it.
    const there = shownAt(cause.place, TOP) >= 0;
    head.append(cause.place ? wasteButton("/" + cause.path, cause.place, [[cause.layer, cause.hidden_by]], there) : text("span", "", say("layers.several")));
    item.append(head, text("span", "cause", cause.what));
    for (const [key, at] of [["layers.made", cause.layer], ["layers.wasted", cause.hidden_by]]) {
      const step = text("span", "", say(key, { layer: say("layers.with_name", { layer: title(at), name: data.layers[at - 1].name }) }));
      step.prepend(spot(at));
      item.append(step);
    }
    item.append(text("span", "quiet", say("layers.saved", { way: cause.saved })));
    $("causes").append(item);
  }
  for (const [p, steps, lost, files, replaced] of data.wastes) {
    const row = document.createElement("tr"), cell = document.createElement("td");
    cell.append(wasteButton("/" + pathOf(p), p, steps, replaced));
    const path = text("td");
    steps.forEach(([held, hider], index) => {
      path.append(index ? ", " : "", spot(held), label(held) + " → ", spot(hider), label(hider));
    });
    path.append(say(replaced ? "page.was_replaced" : "page.was_deleted"));
    row.append(text("td", "", human(lost)), text("td", "", number(files)), path, cell);
    $("wastes").append(row);
  }
  $("sentence").textContent = say("page.sentence", { layers: counted("layer", TOP), sentence: data.sentence });
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
    $("theme").textContent = say(theme === "dark" ? "page.light" : "page.dark");
    $("theme").setAttribute("aria-label", say(theme === "dark" ? "page.to_light" : "page.to_dark"));
  }
  dark.addEventListener("change", () => { theme = dark.matches ? "dark" : "light"; paintTheme(); });
  $("theme").addEventListener("click", () => { theme = theme === "dark" ? "light" : "dark"; paintTheme(); });
  paintTheme();

