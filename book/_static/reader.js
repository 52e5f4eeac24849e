/* Reading aids: boxes that fold, previews of what a link points at, scrolling boxes
   that the keyboard reaches. The page works without. */
(() => {
  "use strict";
  const page = document.documentElement;
  const root = new URL(page.dataset.content_root || "./", location.href);
  const article = document.querySelector("article") || document.body;

  /* Folding: all at once, for a link that leads inside, and for paper. */
  const boxes = () => [...article.querySelectorAll("details")];

  function foldAll(open) {
    const kinds = ".pf-proof, .pf-solution" + (open ? ", .pf-statement" : "");
    for (const box of boxes()) if (box.matches(kinds)) box.open = open;
  }

  function named(hash) {
    try { return decodeURIComponent(hash.slice(1)); } catch { return ""; } // "#100%"
  }

  function openHash() {
    const name = named(location.hash);
    const target = name && document.getElementById(name);
    if (!target) return;
    let shut = false;
    for (let box = target.closest("details"); box;
         box = box.parentElement.closest("details")) {
      shut = shut || !box.open;
      box.open = true;
    }
    if (shut) target.scrollIntoView();
  }

  let printed = [];
  addEventListener("beforeprint", () => {
    printed = boxes().filter((box) => !box.open);
    for (const box of printed) box.open = true;
  });
  addEventListener("afterprint", () => {
    for (const box of printed) box.open = false;
  });
  addEventListener("hashchange", openHash);
  article.addEventListener("click", (event) => {
    const button = event.target.closest("[data-fold]");
    if (button) foldAll(button.dataset.fold === "open");
    const link = event.target.closest('a[href^="#"]');
    if (link && link.hash === location.hash) openHash();
  });
  openHash();

  /* Boxes that scroll sideways: in the tab order while they do. */
  const WIDE = ".pf-scroll, .pst-scrollable-table-container, .pf-formula, pre, " +
    ".cell_output .output, .cell_output .text_html";

  function mark(box, scrolls) {
    if (scrolls && !box.hasAttribute("tabindex")) {
      box.tabIndex = 0;
      box.dataset.reached = "";
      if (box.matches("pre")) return;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", box.matches(".pf-formula") ? "Formula"
        : box.querySelector("table") ? "Table" : "Output");
    } else if (!scrolls && "reached" in box.dataset && box !== document.activeElement) {
      for (const name of ["tabindex", "role", "aria-label", "data-reached"])
        box.removeAttribute(name);
    }
  }

  /* A box is looked at when it comes near, so that no far part of the page has to be
     laid out for it; one in a fold, when that opens. */
  const near = new IntersectionObserver((seen) => {
    const boxes = seen.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
    // All are looked at before one is changed: else each would be laid out anew.
    const scroll = boxes.map((box) => box.scrollWidth > box.clientWidth + 1);
    boxes.forEach((box, k) => mark(box, scroll[k]));
  }, { rootMargin: "50% 0px" });

  function reach() {
    near.disconnect();
    for (const box of article.querySelectorAll(WIDE)) near.observe(box);
  }

  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(reach, 200);
  });
  reach();

  /* Previews. */
  const known = new Map(); // page → {anchor: html}, null if it has none, or the promise
  window.pfPreview = (name, found) => known.set(name, found);

  function place(link) {
    const url = new URL(link.href, location.href);
    const path = url.pathname;
    if (url.origin !== root.origin || url.protocol !== root.protocol) return null;
    if (!path.startsWith(root.pathname) || !path.endsWith(".html")) return null;
    const name = decodeURIComponent(path.slice(root.pathname.length, -5));
    return { url, name, anchor: named(url.hash) };
  }

  function load(name) {
    if (known.has(name)) return known.get(name);
    const coming = new Promise((done) => {
      const script = document.createElement("script");
      script.src = new URL(`_previews/${name}.js`, root).href;
      script.onload = script.onerror = () => {
        if (known.get(name) === coming) known.set(name, null);
        done(known.get(name));
      };
      document.head.append(script);
    });
    known.set(name, coming);
    return coming;
  }

  function here(anchor) {
    const target = document.getElementById(anchor);
    if (!target) return null;
    if (target.matches("tr")) {
      const table = document.createElement("table");
      table.append(target.cloneNode(true));
      return table;
    }
    if (target.matches(".pf-statement, .exercise, .math, .citation, figure"))
      return target.cloneNode(true);
    const section = target.closest("section");
    const head = section && section.querySelector("h1, h2, h3, h4");
    if (!head) return null;
    const box = document.createElement("div");
    box.append(head.cloneNode(true));
    const first = head.parentElement.querySelector(":scope > p");
    if (first) box.append(first.cloneNode(true));
    return box;
  }

  function parsed(html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    const box = document.createElement("div");
    box.append(template.content);
    return box;
  }

  /* A tooltip holds nothing to press: links become words, boxes are open. */
  function still(box, url) {
    const outer = document.createElement("div");
    outer.append(box);
    const swap = (from, tag, name) => outer.querySelectorAll(from).forEach((old) => {
      const made = document.createElement(tag);
      made.className = name || old.className;
      made.append(...old.childNodes);
      old.replaceWith(made);
    });
    outer.querySelectorAll(".headerlink, button, .pf-proof, .pf-solution")
      .forEach((node) => node.remove());
    outer.querySelectorAll("img[src]").forEach((image) => {
      image.src = new URL(image.getAttribute("src"), url).href;
    });
    swap("a", "span");
    swap("summary, h1, h2, h3, h4", "p", "pf-preview-title");
    swap("details", "div", "pf-quoted");
    outer.querySelectorAll("[id], [tabindex]").forEach((node) => {
      node.removeAttribute("id");
      node.removeAttribute("tabindex");
    });
    return outer;
  }

  const tip = document.createElement("div");
  tip.id = "pf-preview";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  let shown = null, timer = 0;

  function hide() {
    clearTimeout(timer);
    if (shown) shown.removeAttribute("aria-describedby");
    shown = null;
    tip.hidden = true;
  }

  function put(link, content) {
    hide();
    tip.replaceChildren(content);
    if (!tip.isConnected) document.body.append(tip);
    tip.hidden = false;
    shown = link;
    link.setAttribute("aria-describedby", tip.id);
    const at = link.getClientRects()[0] || link.getBoundingClientRect();
    const view = page.clientWidth;
    const left = Math.max(8, Math.min(at.left, view - tip.offsetWidth - 8));
    const below = innerHeight - at.bottom > tip.offsetHeight + 8 ||
      at.top < tip.offsetHeight + 8;
    const top = below ? at.bottom + 4 : at.top - tip.offsetHeight - 4;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${top + scrollY}px`;
  }

  async function show(link) {
    wanted = link;
    const to = place(link);
    if (!to) return;
    const mine = root.pathname + to.name + ".html" === location.pathname;
    if (mine && !to.anchor) return;
    let box = mine ? here(to.anchor) : null;
    if (!mine) {
      const found = await load(to.name);
      if (wanted !== link || !found || !found[to.anchor]) return;
      box = parsed(found[to.anchor]);
    }
    if (box) put(link, still(box, to.url));
  }

  let wanted = null;
  const LINK = "a.reference.internal, .bibtex-citation a, a[href*='.html#'], a[href^='#']";
  const linkOf = (event) => {
    const link = event.target.closest && event.target.closest(LINK);
    return link && article.contains(link) && !link.matches(".headerlink") ? link : null;
  };
  const later = (task, wait) => { clearTimeout(timer); timer = setTimeout(task, wait); };
  const leave = () => { wanted = null; later(hide, 300); };

  addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch") return;
    const link = linkOf(event);
    if (tip.contains(event.target)) clearTimeout(timer);
    else if (link && link === shown) clearTimeout(timer);
    else if (link) later(() => show(link), 200);
    else if (shown || wanted) { if (shown !== document.activeElement) leave(); }
    else clearTimeout(timer);
  });
  addEventListener("focusin", (event) => {
    const link = linkOf(event);
    if (link && link.matches(":focus-visible")) show(link);
  });
  addEventListener("focusout", (event) => {
    if (linkOf(event)) leave();
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    wanted = null;
    hide();
  });
})();
