import { startInCleanClone } from './extended/clean-clone.ts';
import { cutNetwork } from './extended/network-cut.ts';
import { runLongFiles } from './extended/long-files.ts';
import { fuzzApi } from './extended/schemathesis.ts';
import { checkWithTessera } from './extended/tessera.ts';
import { scanListeners } from './extended/testssl.ts';

/**
 * What `npm run test:extended` runs: parts that take long, install more than npm packages (cached under COFRE_HOME), or need a machine of their own. `npm run test:extended -- clean` runs the parts whose names contain one of the words.
 *
 * Prints how long each part took, and ends with `N passed, N failed`.
 */

/** A part returns a line for each check that passed, and throws what went wrong. */
interface Part {
  readonly name: string;
  readonly run: () => Promise<readonly string[]>;
}

const PARTS: readonly Part[] = [
  { name: 'long test files', run: runLongFiles },
  { name: 'npm start in a clean clone, as a user without rights', run: startInCleanClone },
  { name: 'schemathesis over the whole API', run: fuzzApi },
  { name: 'testssl.sh on both listeners', run: scanListeners },
  { name: 'network cut between vault and database, each in a namespace', run: cutNetwork },
  { name: "tessera's fsck over the log", run: checkWithTessera },
];

const words = process.argv.slice(2);
const chosen = PARTS.filter((part) => words.length === 0 || words.some((word) => part.name.includes(word)));
let passed = 0;
let failed = 0;
for (const part of chosen) {
  const began = performance.now();
  console.log(`# ${part.name}`);
  try {
    for (const line of await part.run()) {
      console.log(`  ok ${line}`);
      passed++;
    }
  } catch (error) {
    console.log(`  FAILED ${error instanceof Error ? error.message : String(error)}`);
    failed++;
  }
  console.log(`  ${((performance.now() - began) / 60_000).toFixed(1)} minutes`);
}
if (chosen.length === 0) {
  console.error('no part of the extended tests matches');
  failed++;
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;
