// Takes pictures of the camera application's live page, and checks its accessibility with axe-core.
//
//     mkdir /tmp/shots && cd /tmp/shots && npm install puppeteer-core@24 axe-core@4
//     node .../tools/page_shots.mjs http://127.0.0.1:8765/
//
// Pictures go to the current folder: desktop and phones, light and dark. It ends with status 1 if
// axe-core finds anything, the console has an error, or the page is wider than the screen.
// CHROMIUM names the browser, /usr/bin/chromium by default.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(`${process.cwd()}/`);
const puppeteer = require("puppeteer-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const VIEWS = { desktop: [1280, 800, 1], phone: [390, 844, 2], narrow: [320, 640, 2] };
const [url] = process.argv.slice(2);
const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
const browser = await puppeteer.launch({ executablePath, args: ["--no-sandbox"] });
const faults = [];

for (const [view, [width, height, deviceScaleFactor]] of Object.entries(VIEWS)) {
  for (const scheme of ["light", "dark"]) {
    const name = `${view}-${scheme}`;
    const page = await browser.newPage();
    page.on("pageerror", (error) => faults.push(`${name}: ${error.message}`));
    page.on("console", (said) => {
      if (said.type() === "error") faults.push(`${name}: ${said.text()}`);
    });
    await page.setViewport({ width, height, deviceScaleFactor, isMobile: view !== "desktop" });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await page.setBypassCSP(true); // for axe-core, which is not the page's own
    await page.goto(url);
    await page.waitForSelector(".card");
    await new Promise((resolve) => setTimeout(resolve, 3000)); // pictures and figures
    await page.screenshot({ path: `${name}.png` });
    await page.screenshot({ path: `${name}-full.png`, fullPage: true });
    await page.evaluate(axe);
    const { violations } = await page.evaluate("axe.run()");
    for (const { id, impact, nodes } of violations) {
      faults.push(`${name}: axe ${impact} ${id}: ${nodes.map((node) => node.target).join(", ")}`);
    }
    if (await page.evaluate("document.documentElement.scrollWidth > innerWidth")) {
      faults.push(`${name}: wider than the screen`);
    }
    await page.close();
  }
}
await browser.close();
console.log(faults.join("\n") || "nothing found");
process.exitCode = faults.length ? 1 : 0;
