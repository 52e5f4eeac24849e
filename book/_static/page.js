/* The page's own behaviour, small enough to read: colours, sidebars, contents,
search, copying. It stands in the place of the theme's scripts and keeps their ids
and classes, so that the theme's style sheet fits. Nothing here is needed to read. */
"use strict";

(() => {
  const root = document.documentElement;
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const on = (selector, event, answer) =>
    all(selector).forEach((element) => element.addEventListener(event, answer));

  /* What the browser remembers; some browsers remember nothing for a file on disk. */
  function recall(key) {
    try { return localStorage.getItem(key); } catch { return null; }
  }
  function keep(key, value) {
    try {
      if (value === null) localStorage.removeItem(key);
      else localStorage.setItem(key, value);
    } catch { /* then the choice lasts for this page */ }
  }

  /* Colours: automatic, light, dark. The script in the head painted the first. */
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function paint(mode) {
    const theme = mode === "auto" ? (dark.matches ? "dark" : "light") : mode;
    // What is written anew is styled anew, the whole page of it.
    if (root.dataset.mode !== mode) root.dataset.mode = mode;
    if (root.dataset.theme !== theme) root.dataset.theme = theme;
    all(".theme-switch-button").forEach((button) => {
      const said = { auto: "as the system", light: "light", dark: "dark" }[mode];
      button.setAttribute("aria-label", `Colours: ${said}`);
      button.title = `Colours: ${said}`;
    });
  }

  function colours() {
    paint(root.dataset.mode || "auto");
    addEventListener("beforeprint", () => (root.dataset.theme = "light"));
    addEventListener("afterprint", () => paint(root.dataset.mode));
    dark.addEventListener("change", () => {
      if (root.dataset.mode === "auto") paint("auto");
    });
    on(".theme-switch-button", "click", () => {
      const order = dark.matches ? ["auto", "light", "dark"] : ["auto", "dark", "light"];
      paint(order[(order.indexOf(root.dataset.mode) + 1) % 3]);
      keep("mode", root.dataset.mode);
      keep("theme", root.dataset.theme);
    });
  }

  /* Sidebars: in a dialog on a narrow screen; on a wide one the left one may go. */
  function moved(from, to) {
    to.append(...from.childNodes);
    const classes = [...from.classList];
    from.classList.remove(...classes);
    to.classList.add(...classes);
  }

  function outside(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const { clientX: x, clientY: y, detail } = event;
    // A key pressed on a button inside makes a click at (0, 0), of detail 0.
    if (detail && (x < box.left || x > box.right || y < box.top || y > box.bottom)) {
      event.currentTarget.close();
    }
  }

  function drawer(side) {
    const button = one(`.${side}-toggle`);
    const dialog = document.getElementById(`pst-${side}-sidebar-modal`);
    const sidebar = document.getElementById(`pst-${side}-sidebar`);
    if (!button || !dialog || !sidebar) return;
    const wide = matchMedia("(min-width: 992px)");
    const folds = () => side === "primary" && wide.matches;
    function tell() {
      const shown = !sidebar.classList.contains("pst-sidebar-hidden");
      if (folds()) button.setAttribute("aria-expanded", String(shown));
      else button.removeAttribute("aria-expanded");
    }
    tell();
    wide.addEventListener("change", tell);
    dialog.setAttribute("aria-label", sidebar.getAttribute("aria-label") || "On this page");
    button.addEventListener("click", () => {
      if (folds()) {
        sidebar.classList.toggle("pst-sidebar-hidden");
        tell();
        return;
      }
      moved(sidebar, dialog);
      dialog.showModal();
    });
    dialog.addEventListener("click", (event) => {
      if (event.target.closest("a[href^='#']")) dialog.close();
      else outside(event);
    });
    dialog.addEventListener("close", () => moved(dialog, sidebar));
  }

  /* The left sidebar stands where the reader left it, or shows the page. */
  function place() {
    const sidebar = one("#pst-primary-sidebar");
    const here = one("#pst-primary-sidebar .current.active > a");
    if (!sidebar || !sidebar.clientHeight) return;
    let left = null;
    try { left = sessionStorage.getItem("sidebar-scroll-top"); } catch { /* none */ }
    if (left !== null) sidebar.scrollTop = Number(left);
    else if (here && here.offsetTop > sidebar.clientHeight / 2) {
      sidebar.scrollTop = here.offsetTop - sidebar.clientHeight / 4;
    }
    addEventListener("pagehide", () => {
      try { sessionStorage.setItem("sidebar-scroll-top", sidebar.scrollTop); }
      catch { /* none */ }
    });
  }

  /* The contents at the right follow the reader. */
  function contents() {
    const links = all("#pst-page-toc-nav a[href^='#']");
    const entries = all("#pst-page-toc-nav .toc-entry");
    const places = new Map(); // heading → link
    const passed = new Set(); // the links whose headings the reader has come to
    let still = 0;

    function activate(link) {
      links.forEach((other) => {
        other.classList.toggle("active", other === link);
        if (other === link) other.setAttribute("aria-current", "true");
        else other.removeAttribute("aria-current");
      });
      entries.forEach((e) => e.classList.toggle("active", e.contains(link)));
    }
    function follow() {
      const link = links.find((l) => l.hash.length > 1 && l.hash === location.hash);
      if (!link) return;
      still = Date.now() + 1000; // while the page scrolls there
      activate(link);
    }
    // From far above down to a line in the window: a heading crosses it in both ways.
    const watch = new IntersectionObserver((seen) => {
      for (const { target, isIntersecting } of seen) {
        if (isIntersecting) passed.add(places.get(target));
        else passed.delete(places.get(target));
      }
      if (Date.now() > still) activate(links.findLast((link) => passed.has(link)));
    }, { rootMargin: "10000000px 0px -70% 0px" });

    for (const link of links) {
      const target = document.getElementById(decodeURIComponent(link.hash.slice(1)));
      const heading = target && (one("h1, h2, h3, h4, h5, h6", target) || target);
      if (heading) {
        places.set(heading, link);
        watch.observe(heading);
      }
    }
    addEventListener("hashchange", follow);
    follow();
  }

  /* Search: a field that comes with Ctrl+K or ⌘K, and the words found on the page. */
  function field() {
    const dialog = one("#pst-search-dialog");
    const resident = all("form.bd-search input").find((i) => !i.closest("dialog"));
    const mac = /^(Mac|iPhone|iPad)/.test(navigator.platform);
    function toggle() {
      if (resident) resident.focus();
      else if (dialog && dialog.open) dialog.close();
      else if (dialog) dialog.showModal();
    }
    on(".search-button__button", "click", toggle);
    if (dialog) {
      dialog.setAttribute("aria-label", "Search the book");
      dialog.addEventListener("click", outside);
    }
    addEventListener("keydown", (event) => {
      const control = mac ? event.metaKey && !event.ctrlKey : event.ctrlKey && !event.metaKey;
      if (!control || event.shiftKey || event.altKey || event.key.toLowerCase() !== "k") return;
      event.preventDefault();
      toggle();
    });
    if (mac) all(".kbd-shortcut__modifier").forEach((key) => (key.textContent = "⌘"));
    if (resident) resident.focus();
  }

  // What is read: not the data of a live figure, nor the TeX beside a formula.
  const read = (text) => (text.parentElement.closest("script, style, annotation")
    ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT);

  function ranges(words) {
    const found = [];
    const walk = document.createTreeWalker(
      one("article") || document.body, NodeFilter.SHOW_TEXT, read);
    while (walk.nextNode()) {
      const { data } = walk.currentNode, small = data.toLowerCase();
      const text = small.length === data.length ? small : data; // "İ" becomes two
      for (const word of words) {
        for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + word.length)) {
          const range = new Range();
          range.setStart(walk.currentNode, at);
          range.setEnd(walk.currentNode, at + word.length);
          found.push(range);
        }
      }
    }
    return found;
  }

  function marks() {
    const given = recall("sphinx_highlight_terms")
      || new URLSearchParams(location.search).get("highlight") || "";
    const words = given.toLowerCase().split(/\s+/).filter(Boolean);
    const box = one("#searchbox");
    if (!words.length || !box || !window.Highlight || !one("article")) return;
    keep("sphinx_highlight_terms", null);
    CSS.highlights.set("search", new Highlight(...ranges(words)));
    const button = document.createElement("button");
    button.className = "btn btn-sm";
    button.type = "button";
    button.textContent = "Hide the search marks";
    function hide() {
      CSS.highlights.delete("search");
      button.remove();
    }
    button.addEventListener("click", hide);
    addEventListener("keydown", (event) => event.key === "Escape" && hide());
    box.append(button);
  }

  /* Sphinx's search reads each page that it found for a summary; on disk no page may
  read another. The TeX beside a formula and the names of buttons are no summary. */
  function summaries() {
    if (typeof DOCUMENTATION_OPTIONS === "undefined") return;
    DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = location.protocol !== "file:";
    document.addEventListener("DOMContentLoaded", () => {
      const read = Search.htmlToText;
      const unread = /<(annotation|button)\b[^]*?<\/\1>/g;
      Search.htmlToText = (html, anchor) => read(html.replace(unread, ""), anchor);
    });
  }

  /* Copying code. A page that came over plain http may not use the clipboard. */
  async function copied(text) {
    if (navigator.clipboard && isSecureContext) {
      await navigator.clipboard.writeText(text);
      return;
    }
    const area = document.createElement("textarea"), before = document.activeElement;
    area.value = text;
    document.body.append(area);
    area.select();
    const so = document.execCommand("copy");
    area.remove();
    before.focus({ preventScroll: true });
    if (!so) throw new Error("refused");
  }

  function told(button, words, so) {
    const icon = button.firstElementChild;
    button.classList.toggle("success", so);
    icon.classList.toggle("fa-check", so);
    icon.classList.toggle("fa-copy", !so);
    button.title = words;
    button.setAttribute("aria-label", words);
  }

  function copying() {
    // A button far away is not laid out, and stands in nobody's way.
    const near = new IntersectionObserver((seen) => {
      for (const { target, isIntersecting } of seen) {
        if (!isIntersecting) continue;
        one(":scope > .copybtn", target).hidden = false;
        near.unobserve(target);
      }
    }, { rootMargin: "50% 0px" });
    all(".highlight:has(> .copybtn)").forEach((code) => near.observe(code));
    // The keyboard reaches all of them.
    function reach(event) {
      if (event.key !== "Tab") return;
      all(".copybtn").forEach((button) => (button.hidden = false));
      removeEventListener("keydown", reach);
    }
    addEventListener("keydown", reach);
    document.addEventListener("click", async (event) => {
      const button = event.target.closest("button.copybtn");
      if (!button) return;
      const code = one("pre", button.parentElement);
      const name = (button.dataset.name ??= button.title);
      try {
        await copied(code.textContent.replace(/\n+$/, "\n"));
        told(button, "Copied", true);
      } catch {
        told(button, "The browser does not allow copying", false);
      }
      setTimeout(told, 1500, button, name, false);
    });
  }

  /* The menu of downloads, printing, the whole screen. */
  function menus() {
    on(".dropdown-toggle", "click", (event) => {
      const button = event.currentTarget;
      const open = one(".dropdown-menu", button.parentElement).classList.toggle("show");
      button.setAttribute("aria-expanded", String(open));
    });
    function close(focus) {
      all(".dropdown-menu.show").forEach((menu) => {
        const button = one(".dropdown-toggle", menu.parentElement);
        menu.classList.remove("show");
        button.setAttribute("aria-expanded", "false");
        if (focus) button.focus();
      });
    }
    addEventListener("click", (event) => {
      if (!event.target.closest(".dropdown-toggle")) close(false);
    });
    addEventListener("keydown", (event) => event.key === "Escape" && close(true));
    on(".btn-download-pdf-button", "click", () => print());
    if (!document.fullscreenEnabled) all(".btn-fullscreen-button").forEach((b) => b.remove());
    on(".btn-fullscreen-button", "click", () => {
      const turned = document.fullscreenElement
        ? document.exitFullscreen() : root.requestFullscreen();
      turned.catch(() => null); // then the window stays as it is
    });
  }

  function scrolled() {
    const pixel = one(".sbt-scroll-pixel-helper");
    if (!pixel) return;
    new IntersectionObserver(([seen]) => {
      document.body.classList.toggle("scrolled", seen.boundingClientRect.y < 0);
    }).observe(pixel);
  }

  summaries();
  colours();
  ["primary", "secondary"].forEach(drawer);
  requestAnimationFrame(() => setTimeout(place)); // it asks how tall things are
  contents();
  field();
  copying();
  menus();
  scrolled();
  marks();
})();
