import t from 'tap';
import { readOptions } from './options.ts';

t.equal(readOptions(['--help']), null);
t.match(readOptions([]), { rounds: 5, soak: null, checkpointSeconds: null, configurations: [{ workers: 1, custody: 'envelope', existing: 0 }] });
t.same(readOptions(['--workers', '1,2', '--custody', 'envelope,direct', '--existing', '0,20000000'])!.configurations.length, 8, 'every combination is measured');
t.same(readOptions(['--soak'])!.soak, { minutes: 60, load: 1, samplesFile: 'soak.jsonl' }, 'a soak takes an hour');
t.match(readOptions(['--soak', '--workers', '2']), { soak: { minutes: 60 }, configurations: [{ workers: 2 }] });
t.match(readOptions(['--soak', '1.5', '--load', '0.5']), { soak: { minutes: 1.5, load: 0.5 } });
t.match(readOptions(['--soak=2']), { soak: { minutes: 2 } });
t.match(readOptions(['--shared-buffers', '4GB']), { sharedBuffers: '4GB' });

for (const wrong of ['--rounds 0', '--rounds 1.5', '--seconds x', '--only nothing', '--custody both', '--workers 1,x', '--checkpoints 10', '--soak --workers 1,2', '--load 2', '--draw a.json', '--existing -1', '--shared-buffers 4', '--shared-buffers 4TB'])
  t.throws(() => readOptions(wrong.replace(' -1', '=-1').split(' ')), { name: 'UsageError' }, wrong);
