// Runs Workers in miniflare, of the packages beside the file given, until standard input closes. The first line there is
// miniflare's options, as JSON; the answer is one line, the address. What the Workers log goes to standard error.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const { Log, LogLevel, Miniflare } = createRequire(process.argv[2])("miniflare");

const input = createInterface({ input: process.stdin });
let miniflare;
input.once("line", async (line) => {
  miniflare = new Miniflare({
    ...JSON.parse(line),
    cf: false, // or it would be asked of Cloudflare at every start
    log: new Log(LogLevel.ERROR),
    handleRuntimeStdio: (stdout, stderr) => [stdout, stderr].forEach((stream) => stream.pipe(process.stderr)),
  });
  console.log((await miniflare.ready).origin);
});
input.once("close", () => miniflare?.dispose()); // and then the process ends by itself: files are still being removed
