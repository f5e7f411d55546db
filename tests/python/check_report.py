"""Opens pages of `sae report` in Chromium and looks at them as a person would.

usage: check_report.py SAE PAGE.html [SCREENSHOTS]

PAGE.html is a page made with labels. A second one is made here, from a run whose ids, labels and paths are HTML. Checked:
nothing is loaded but the file, the console stays empty, every head sorts both ways, the search finds and counts, links
lead to latents; no sideways scrolling on a telephone, where cards and a choice of the order replace the heads; text
stands out against its ground in light and dark; printed on white without controls. CHROMIUM names the browser
(default /usr/bin/chromium). SCREENSHOTS is a folder for pictures.
"""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
from playwright.sync_api import sync_playwright

EVIL = "<img src=x onerror=\"window.evil=1\">'&<script>window.evil=2</script>"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


def evil_pages(sae, folder):
    """A page from data that try to be markup, and the same without labels."""
    run, labels = folder / "<b onclick=evil()>run", folder / "labels<i>.tsv"
    rng = np.random.default_rng(0)
    ids = [f"{EVIL}{n}" for n in range(200)]
    with h5py.File(folder / "data.h5", "w") as f:
        f["embeddings"] = rng.normal(size=(200, 3)).astype("f4") @ rng.normal(size=(3, 16)).astype("f4")
        f["ids"] = ids
    lines = [f"{i}\t{[EVIL.replace(';', ''), 'plain'][n % 2]}\n" for n, i in enumerate(ids)]
    labels.write_text("id\t<u>kind\n" + "".join(lines))
    train = [sae, "train", folder / "data.h5", "--out", run, "--latents", "32", "--k", "4", "--steps", "20", "--quiet"]
    subprocess.run(train, check=True, stdout=subprocess.DEVNULL)
    plain = folder / "plain.html"
    for more in [["--labels", labels], ["-o", plain]]:
        subprocess.run([sae, "report", run, "--quiet", *more], check=True, stdout=subprocess.DEVNULL)
    return run / "report.html", plain


class Looker:
    """A page in a browser, with what it should not have done."""

    def __init__(self, browser, path, **how):
        self.wrong = []
        self.context = browser.new_context(**how)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.wrong.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        url = Path(path).absolute().as_uri()
        self.page.on("request", lambda request: request.url.split("#")[0] != url and self.wrong.append(request.url))
        self.page.goto(url)

    def close(self):
        assert self.page.evaluate("window.evil") is None, "a script from the data ran"
        assert not self.wrong, self.wrong
        self.context.close()


def keys(page, table, column):
    """What a column is sorted by, in the order of the screen."""
    cells = page.eval_on_selector_all(f"#{table} tbody tr", f"rows => rows.map(r => r.cells[{column}].dataset.v)")
    try:
        return [float(c) for c in cells if c != ""], cells
    except ValueError:
        return None, cells


def check_sorting(page, table):
    heads = page.locator(f"#{table} thead th")
    for column in range(heads.count()):
        head = heads.nth(column)
        before = sorted(keys(page, table, column)[1])
        seen, texts = set(), {}
        for _ in range(2):
            head.locator("button").click()
            way = head.get_attribute("aria-sort")
            seen.add(way)
            numbers, cells = keys(page, table, column)
            assert sorted(cells) == before, "sorting lost a line"
            filled = [c for c in cells if c != ""]
            assert cells == filled + [""] * (len(cells) - len(filled)), "lines without a value are not last"
            if numbers is not None:
                assert numbers == sorted(numbers, reverse=way == "descending"), (table, column, way)
            else:
                # The browser's order of words is its own; each word is in one place, and both ways are one order.
                texts[way] = [c for i, c in enumerate(filled) if i == 0 or c != filled[i - 1]]
                assert len(set(texts[way])) == len(texts[way]), (table, column, way)
        if texts:
            assert texts["ascending"] == texts["descending"][::-1] and len(texts["ascending"]) > 1, (table, column)
            up = "texts => texts.every((t, i) => !i || texts[i - 1].localeCompare(t, 'en', { numeric: true }) < 0)"
            assert page.evaluate(up, texts["ascending"]), (table, column)
        assert seen == {"ascending", "descending"}, seen
        assert page.locator(f"#{table} [aria-sort]").count() == 1


def check_search(page, table):
    rows, visible = page.locator(f"#{table} tbody tr"), page.locator(f"#{table} tbody tr:visible")
    box, told = page.locator(f"input[data-for={table}]"), page.locator(f"output[data-for={table}]")
    n = rows.count()
    assert n > 1 and visible.count() == n
    word = rows.nth(1).locator("td").nth(0).inner_text().split()[-1]
    box.fill(word.upper())
    found = visible.count()
    assert 0 < found <= n and told.inner_text() == f"{found} of {n}", (word, found, told.inner_text())
    assert all(word.lower() in text.lower() for text in visible.all_inner_texts())
    box.fill("no such thing anywhere")
    assert visible.count() == 0
    box.fill("")
    assert visible.count() == n


# Contrast as WCAG 2 defines it, of every text that is seen, against the nearest ground that is not transparent.
CONTRAST = """() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  let least = [99, ""];
  for (const e of document.querySelectorAll("h1,h2,p,td,th,span,i,b,a,li,figcaption,footer,summary,label,text,output")) {
    if (!e.textContent.trim() || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(parse(e.tagName === "text" ? style.fill : style.color)), light(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < least[0]) least = [ratio, e.tagName + " " + e.textContent.slice(0, 40)];
  }
  return least;
}"""


def check_wide(browser, path, shot):
    look = Looker(browser, path, viewport=WIDE)
    page = look.page
    assert page.locator("svg").count() == 6 and page.locator("svg polyline").count() == 10
    for table in ["features", "labels"]:
        check_sorting(page, table)
        check_search(page, table)
    link = page.locator("#labels a[href^='#latent-']").first
    target = link.get_attribute("href")[1:]
    link.click()
    assert page.evaluate("id => document.getElementById(id).getBoundingClientRect().top", target) < WIDE["height"]
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDE["width"]
    shot(page, "wide")
    look.close()


def check_colours(browser, path, shot):
    grounds = {}
    for scheme in ["light", "dark"]:
        look = Looker(browser, path, viewport=WIDE, color_scheme=scheme)
        least, where = look.page.evaluate(CONTRAST)
        assert least >= 4.5, (scheme, least, where)
        print(f"{scheme}: least contrast {least:.2f}")
        grounds[scheme] = look.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        shot(look.page, scheme)
        look.page.emulate_media(media="print")
        printed = look.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert printed == "rgb(255, 255, 255)", (scheme, printed)
        assert look.page.evaluate(CONTRAST)[0] >= 4.5
        assert not look.page.locator("input:visible, select:visible, nav:visible").count()
        assert look.page.locator("#features tbody tr:visible").count() <= 60
        shot(look.page, f"print-{scheme}")
        look.close()
    assert grounds["light"] != grounds["dark"], grounds


def check_phone(browser, path, shot):
    look = Looker(browser, path, viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True)
    page = look.page
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], "scrolls sideways"
    wide = page.eval_on_selector_all(
        "#features td", "cells => cells.filter(c => c.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert wide == 0, f"{wide} cells reach beyond the screen"
    assert not page.locator("#features thead:visible").count()
    page.locator("select[data-for=features]").select_option(label="max")
    numbers = keys(page, "features", 3)[0]
    assert numbers == sorted(numbers, reverse=True)
    smallest = page.eval_on_selector_all(
        "svg text", "texts => Math.min(...texts.map(t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a))"
    )
    assert smallest >= 9, f"text of {smallest} pixels"
    shot(page, "phone")
    page.locator("#features").scroll_into_view_if_needed()
    page.evaluate("document.querySelector('#by-latent').scrollIntoView()")
    shot(page, "phone-features", whole=False)
    look.close()


def main():
    sae, page_path, *shots = sys.argv[1:]

    def shot(page, name, whole=True):
        if shots:
            os.makedirs(shots[0], exist_ok=True)
            page.screenshot(path=os.path.join(shots[0], f"{name}.png"), full_page=whole)

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"]
        )
        check_wide(browser, page_path, shot)
        check_colours(browser, page_path, shot)
        check_phone(browser, page_path, shot)
        evil, plain = evil_pages(sae, Path(folder))
        look = Looker(browser, evil, viewport=WIDE)
        assert look.page.locator("#features .ids li").first.inner_text().startswith(EVIL)
        assert look.page.locator("h1").inner_text() == "<b onclick=evil()>run"
        assert EVIL.replace(";", "") in look.page.locator("#labels").inner_text()
        assert not look.page.locator("img, h1 b, main u, main script").count()
        check_sorting(look.page, "features")
        check_search(look.page, "labels")
        look.close()
        look = Looker(browser, plain, viewport=WIDE)
        assert not look.page.locator("#labels, a[href='#by-label']").count()
        check_sorting(look.page, "features")
        check_search(look.page, "features")
        look.close()
        for page in [evil, plain]:
            check_phone(browser, page, lambda *a, **k: None)
        browser.close()
    print("the pages do what they should: wide, telephone, dark, printed, and with data that are markup")


main()
