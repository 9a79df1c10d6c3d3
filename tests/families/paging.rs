//! A cache of two tiers: pages move as `promote`, `exchange`, `gather` and `write_back` say, and whatever moves, every
//! step gives the same bits as one that has everything on the GPU, and every row is where the table says: those that
//! decoding probes first on the GPU as well.

use std::collections::BTreeMap;
use std::ops::Range;

use ihip_dsl::emit::{Activation, Buffer, Extent, Paging, Program, Slots, tally};
use ihip_dsl::{KvType, Plan, Probe, Renewal, Representative, Stage, Turn};
use ihip_tests::support::attention::Attention;
use ihip_tests::support::host::host;

use super::attend::short_layers;
use super::quantised::quantised_layers;
use super::turns::in_turns;
use super::{Layer, Noise, TOKENS, layers, scored_layers};

/// Rows of a step of prefill at most.
const ROWS: usize = 128;

/// A request that runs side by side on two tiers and on one.
struct Pair {
    layer: Layer,
    tiered: Attention,
    whole: Attention,
    noise: Noise,
    length: usize,
    /// Halvings whose probes the GPU keeps.
    levels: usize,
    /// Slots whose keys are on the GPU.
    keys_here: usize,
    /// Most that a step may add to a word of what is counted.
    most: usize,
    /// What runs, for messages.
    what: String,
}

impl Pair {
    /// `keys` and `values` slots on the GPU, which keeps the probes of as many of `levels` halvings as it can.
    fn new(layer: &Layer, dense: bool, slots: [usize; 2], levels: usize) -> Self {
        let plan = if dense { Plan::dense(layer.geometry(), layer.frequencies(), 1) } else { in_turns(layer).0 };
        let program = Program::new(&plan, Activation::F32).expect("a usual head");
        Self::running(layer, program, slots, if dense { 0 } else { levels })
    }

    /// The same of a program for the layer.
    fn running(layer: &Layer, program: Program, slots: [usize; 2], levels: usize) -> Self {
        let extent = Extent { rows: ROWS, tokens: TOKENS };
        let pages = TOKENS.div_ceil(layer.page as usize);
        let keeping = program.clone().keeping_probes(levels);
        let [keys, values] = slots;
        Self {
            most: Paging::new(&keeping, Slots { pages, keys, values }).most_counted(),
            tiered: Attention::tiered(host(), keeping, extent, slots),
            whole: Attention::running(host(), program, extent, pages),
            layer: layer.clone(),
            noise: Noise(7),
            length: 0,
            keys_here: slots[0],
            levels: (1..=levels).rev().find(|levels| keeps(layer, *levels)).unwrap_or(0),
            what: format!("{slots:?} of {pages} slots, probes of {levels} halvings, {layer:?}"),
        }
    }

    fn rows(&mut self, rows: usize) -> Vec<f32> {
        (0..rows * self.row_of()).map(|_| self.noise.next()).collect()
    }

    fn prefill(&mut self, rows: usize) {
        let qkv = self.rows(rows);
        let (expected, masks) = self.whole.prefill(self.length, TOKENS, &qkv);
        let (found, found_masks) = self.tiered.prefill(self.length, TOKENS, &qkv);
        self.length += rows;
        assert_eq!(found_masks, masks, "lists of {rows} rows up to {}", self.length);
        let row = self.layer.query_row();
        let differs = found.chunks(row).zip(expected.chunks(row)).position(|(found, expected)| found != expected);
        assert_eq!(differs, None, "the first of {rows} rows up to {} whose output differs, {}", self.length, self.what);
        self.check();
    }

    /// A step of two calls, beside two steps.
    fn prefill_in_two(&mut self, first: usize, rows: usize) {
        let qkv = self.rows(first + rows);
        let found = self.tiered.prefill_in_two(self.length, TOKENS, first, &qkv);
        for ((found, masks), qkv) in
            found.into_iter().zip([&qkv[..first * self.row_of()], &qkv[first * self.row_of()..]])
        {
            let (expected, expected_masks) = self.whole.prefill(self.length, TOKENS, qkv);
            self.length += qkv.len() / self.row_of();
            assert_eq!(masks, expected_masks, "lists of a call up to {}, {}", self.length, self.what);
            assert!(found == expected, "outputs of a call up to {}, {}", self.length, self.what);
        }
        self.check();
    }

    /// A step of calls of so many rows that attend to every key: there are no lists.
    fn prefill_densely(&mut self, calls: &[usize]) {
        let calls: Vec<Vec<f32>> = calls.iter().map(|rows| self.rows(*rows)).collect();
        let calls: Vec<&[f32]> = calls.iter().map(Vec::as_slice).collect();
        let [expected, found] = [&mut self.whole, &mut self.tiered].map(|attention| {
            attention.prefill_calls(self.length, TOKENS, &calls, |attention, rows, launches| {
                attention.launch(launches);
                attention.out(rows.len())
            })
        });
        self.length += calls.iter().map(|qkv| qkv.len() / self.row_of()).sum::<usize>();
        assert!(found == expected, "outputs of a step up to {}, {}", self.length, self.what);
        self.check();
    }

    fn row_of(&self) -> usize {
        self.layer.query_row() + 2 * self.layer.key_row()
    }

    fn decode(&mut self, renewal: impl Into<Renewal>) {
        let (qkv, renewal) = (self.rows(1), renewal.into());
        let (due, before) = (self.scanned(renewal), self.tiered.read_i32(Buffer::Tally));
        let (expected, lists) = self.whole.decode(self.length, TOKENS, renewal, &qkv);
        let (found, found_lists) = self.tiered.decode(self.length, TOKENS, renewal, &qkv);
        assert_eq!(found_lists, lists, "lists at position {}", self.length);
        assert!(found == expected, "outputs at position {} differ, {}", self.length, self.what);
        let counted = self.tiered.read_i32(Buffer::Tally);
        if let Some(due) = due {
            let words = tally::stage(0)..tally::stage(1);
            assert_eq!(counted[words], due, "pages of the first stage at position {}, {}", self.length, self.what);
        }
        let most = counted.iter().zip(&before).map(|(counted, before)| counted - before).max();
        assert!(
            most.is_some_and(|most| most as usize <= self.most),
            "{most:?} at position {}, {}",
            self.length,
            self.what
        );
        self.length += 1;
        self.check();
    }

    /// What will be counted of the first stage: pages on the GPU and others. `None` where it is not scanned, or reads no keys.
    fn scanned(&mut self, renewal: Renewal) -> Option<[i32; 2]> {
        let heads = renewal.heads(0, self.layer.heads.1 as usize);
        let stage = self.layer.pruning.stages.first().filter(|_| !heads.is_empty())?;
        let (page, chunk) = (self.layer.page as usize, stage.chunk as usize);
        let (sink, window) = (self.layer.pruning.sink as usize, self.layer.pruning.window as usize);
        let table = self.tiered.read_i32(Buffer::PageTable);
        let here = self.keys_here as i32;
        let before = self.tiered.read_i32(Buffer::Tally);
        let mut counted = [before[tally::stage(0)], before[tally::stage(0) + 1]];
        // A chunk is scanned that begins a window less itself before the query, or earlier.
        let scanned =
            (0..).map(|number| sink + number * chunk).take_while(|first| first + window <= self.length + chunk);
        for first in scanned.filter(|first| first + window < TOKENS) {
            for slot in &table[first / page..=(first + chunk - 1) / page] {
                counted[usize::from(*slot >= here)] += 1;
            }
        }
        Some(counted)
    }

    /// Every page has one home, the slots know their pages, and every row is where the table says. Returns what was
    /// counted.
    fn check(&mut self) -> BTreeMap<&'static str, u32> {
        let table = self.tiered.read_i32(Buffer::PageTable);
        let mut homes = table.clone();
        homes.sort_unstable();
        assert!(homes.iter().copied().eq(0..table.len() as i32), "a slot is home to one page: {table:?}");
        for (slot, page) in self.tiered.read_i32(Buffer::Residents).into_iter().enumerate() {
            assert_eq!(table[page as usize], slot as i32, "page {page}");
        }
        let others = self.whole.read_i32(Buffer::PageTable);
        let page = self.layer.page as usize;
        for buffer in [Buffer::Keys, Buffer::Values] {
            let (here, there) = (self.tiered.read(buffer), self.whole.read(buffer));
            for row in 0..self.length * self.layer.heads.1 as usize {
                let (position, head) = (row / self.layer.heads.1 as usize, row % self.layer.heads.1 as usize);
                let at = |table: &[i32]| self.row(table[position / page] as usize, head, position % page);
                for (at_here, at_there) in at(&table).into_iter().zip(at(&others)) {
                    assert!(
                        here[at_here] == there[at_there],
                        "{buffer:?} of position {position} and head {head}, {} tokens, {}",
                        self.length,
                        self.what
                    );
                }
            }
        }
        if self.levels > 0 {
            self.check_probes(&others);
        }
        let opened = self.length / page;
        let values = self.tiered.read(Buffer::Residents).len() / 4;
        assert!(opened == table.len() || (table[opened] as usize) < values, "the page of the next token is on the GPU");
        let counted = self.tiered.read_i32(Buffer::Tally);
        let words = [
            ("here", tally::READ_HERE),
            ("keys here", tally::READ_KEYS_HERE),
            ("there", tally::READ_THERE),
            ("promoted values", tally::PROMOTED_VALUES),
            ("promoted", tally::PROMOTED),
            ("evicted values", tally::EVICTED_VALUES),
            ("evicted", tally::EVICTED),
            ("gathered", tally::GATHERED),
            ("written keys", tally::WRITTEN_KEYS),
            ("written values", tally::WRITTEN_VALUES),
        ];
        words.map(|(name, word)| (name, counted[word] as u32)).into()
    }

    /// Bytes of a row's numbers and of its scales, in the slot of a page.
    fn row(&self, slot: usize, head: usize, row: usize) -> [Range<usize>; 2] {
        let (kv_type, head_dim, page) = (self.layer.kv_type, self.layer.heads.2 as usize, self.layer.page as usize);
        let head = (slot * self.layer.heads.1 as usize + head) * kv_type.page_bytes(page, head_dim);
        let (numbers, scales) = (kv_type.number_bytes(head_dim), 2 * kv_type.scales(head_dim));
        let (number, scale) = (head + row * numbers, head + page * numbers + row * scales);
        [number..number + numbers, scale..scale + scales]
    }

    /// Every key that is probed first and written is among those that the GPU keeps.
    fn check_probes(&mut self, table: &[i32]) {
        let (kept, keys) = (self.tiered.read(Buffer::Probes), self.whole.read(Buffer::Keys));
        let (stage, page) = (self.layer.pruning.stages[0], self.layer.page as usize);
        let (sink, chunk) = (self.layer.pruning.sink as usize, stage.chunk as usize);
        let Representative::Halving(halving) = stage.scoring.representative else { panic!("probes of {stage:?}") };
        for number in 0..self.length.saturating_sub(sink).div_ceil(chunk) {
            let mut place = number * ((2 << self.levels) - 2);
            for level in 0..self.levels {
                let half = chunk / (2 << level);
                for nth in 0..2 << level {
                    let within = if halving.probe == Probe::First { 0 } else { half / 2 };
                    let token = sink + number * chunk + nth * half + within;
                    for head in 0..self.layer.heads.1 as usize {
                        let home = table[token.min(self.length) / page] as usize;
                        let rows = self.row(place / page, head, place % page);
                        let same = rows.into_iter().zip(self.row(home, head, token % page));
                        let same = same.map(|(here, there)| kept[here] == keys[there]);
                        assert!(
                            token >= self.length || same.into_iter().all(|same| same),
                            "the probe at {token} of halving {level} and head {head}, {} tokens, {}",
                            self.length,
                            self.what
                        );
                    }
                    place += 1;
                }
            }
        }
    }
}

/// Whether the first `levels` halvings of a layer probe places that are worth keeping.
fn keeps(layer: &Layer, levels: usize) -> bool {
    let halves = |stage: &Stage| {
        let chunk = stage.chunk as usize;
        let halving = matches!(stage.scoring.representative, Representative::Halving(_));
        halving && chunk > 8 && chunk.is_multiple_of(1 << levels) && chunk >> levels >= 3
    };
    layer.pruning.stages.first().is_some_and(halves)
}

/// Layers that halve the chunks of their first stage in every way, in caches of every type, and some that do not.
fn paged_layers() -> Vec<Layer> {
    let quantised = quantised_layers().into_iter().filter(|layer| keeps(layer, 1));
    layers().into_iter().chain(scored_layers().into_iter().take(3)).chain(quantised).collect()
}

#[test]
fn whatever_moves_every_step_gives_the_same_bits_and_every_row_is_where_the_table_says() {
    let (mut kept, mut turns) = (Vec::new(), 0);
    for (number, layer) in paged_layers().into_iter().enumerate() {
        let pages = TOKENS.div_ceil(layer.page as usize);
        // All keys and some values, some of either, and the least: each for two layers and more.
        let [keys, values] = [[pages / 2, pages / 4], [pages, pages / 3], [3, 2]][number % 3];
        let mut pair = Pair::new(&layer, false, [keys, values], [3, 1, 2, 4, 0][number % 5]);
        kept.push((layer.kv_type, pair.levels));
        pair.prefill(128);
        let gathered = pair.check()["gathered"];
        pair.prefill_in_two(64, 64);
        pair.prefill(77);
        assert_eq!(gathered, 0, "nothing comes before there is anything: {}", pair.what);
        let (stages, heads) = (layer.pruning.stages.len(), layer.heads.1 as usize);
        let restart = |step: usize| (step.is_multiple_of(4) && stages > 0).then(|| step / 4 % stages);
        let takes_turns = in_turns(&layer).0.turns(0) > 1;
        turns += usize::from(takes_turns);
        for step in 0..24 {
            // The first half of the heads scans a step before the others, which cut.
            let scanned = [heads / 2, heads - heads / 2];
            let first = Turn { first: 0, heads: scanned[0] };
            let turn = match [restart(step), restart(step + 1)] {
                [Some(0), _] => Some(Turn { first: scanned[0], heads: scanned[1] }),
                [_, Some(0)] => Some(first),
                _ => None,
            };
            let turn = turn.filter(|_| takes_turns && step > 0);
            pair.decode(Renewal { restart: restart(step), turn });
        }
        // A second prompt reads what decoding has scattered.
        pair.prefill(51);
        pair.decode((stages > 0).then_some(0));
        let (counted, what) = (pair.check(), &pair.what);
        let of = |words: [&str; 2]| words.map(|word| counted[word]).iter().sum::<u32>();
        assert!(of(["keys here", "there"]) > 0, "{what}: {counted:?}");
        assert!(of(["evicted values", "evicted"]) > 0, "{what}: {counted:?}");
        if keys > 3 && stages > 0 {
            assert!(of(["promoted values", "promoted"]) > 0, "{what}: {counted:?}");
        }
        if stages > 0 {
            assert!(counted["written values"] > 0 && counted["gathered"] > 0, "{what}: {counted:?}");
            assert_eq!(counted["written keys"] > 0, keys < pages, "{what}: {counted:?}");
        }
    }
    assert!(turns > 3, "{turns} layers whose heads take turns");
    for kv_type in KvType::ALL {
        assert!(kept.iter().any(|(kept, levels)| *kept == kv_type && *levels > 0), "{kv_type:?} of {kept:?}");
    }
    for levels in 0..4 {
        assert!(kept.iter().any(|(_, kept)| *kept == levels), "{levels} of {kept:?}");
    }
}

#[test]
fn what_moves_pages_reads_as_if_a_person_had_written_it() {
    let layer = &layers()[1];
    let program = Program::new(&layer.plan(), Activation::F32).expect("a usual head").keeping_probes(2);
    let kernels = Paging::new(&program, Slots { pages: 3, keys: 2, values: 1 }).kernels();
    let own = kernels.iter().map(|kernel| {
        let (heading, rest) = kernel.text.split_once("#line 1 \"prelude.cu\"\n").expect("a prelude");
        let (_, own) = rest.split_once("#line 1 \"").expect("the kernel's own text");
        format!("{heading}#line 1 \"{own}")
    });
    insta::assert_snapshot!(own.collect::<Vec<_>>().join("\n"));
}

#[test]
fn what_reads_kept_probes_differs_from_what_does_not_in_that_alone() {
    for layer in paged_layers().iter().filter(|layer| keeps(layer, 2)) {
        let program = Program::new(&layer.plan(), Activation::F32).expect("a usual head");
        let (plain, keeping) = (program.kernels(), program.keeping_probes(2).kernels());
        assert_eq!(plain.len(), keeping.len(), "{layer:?}");
        let differ: Vec<_> = plain.iter().zip(&keeping).filter(|(plain, keeping)| plain != keeping).collect();
        let [(plain, keeping)] = differ[..] else { panic!("{} kernels differ, {layer:?}", differ.len()) };
        assert!(plain.name == keeping.name && keeping.text.contains("stays ? probe_row("), "{}", keeping.name);
        if layer.heads == (9, 3, 64) || layer.heads == (4, 2, 32) && layer.kv_type == KvType::F32 {
            let (_, descent) = keeping.text.split_once("for (int halving").expect("a descent");
            let (descent, _) = descent.split_once("tie goes").expect("a decision");
            insta::with_settings!({snapshot_suffix => keeping.name.clone()}, { insta::assert_snapshot!(descent) });
        }
    }
}

#[test]
fn a_dense_layer_reads_every_page_where_it_is() {
    for layer in &layers()[..2] {
        let mut pair = Pair::new(layer, true, [6, 3], 3);
        pair.prefill(128);
        pair.prefill(99);
        for _ in 0..2 * layer.page {
            pair.decode(None);
        }
        pair.prefill(64);
        assert!(pair.check()["written keys"] > 0);
    }
}

#[test]
fn a_prompt_that_begins_densely_attends_to_what_earlier_steps_have_left_with_the_host() {
    for layer in short_layers() {
        let program = Program::new(&layer.plan(), Activation::F32).expect("a usual head").with_dense_path();
        assert!(program.begins_densely(0, TOKENS), "{layer:?}");
        let mut pair = Pair::running(&layer, program, [6, 3], 2);
        for calls in [&[128][..], &[64, 64], &[77]] {
            pair.prefill_densely(calls);
        }
        for step in 0..20 {
            pair.decode((step % 4 == 0).then_some(0));
        }
        pair.prefill_densely(&[51]);
        let counted = pair.check();
        assert!(counted["written values"] > 0 && counted["evicted"] > 0, "{}: {counted:?}", pair.what);
        assert_eq!(counted["gathered"], 0, "no list says which pages: {}", pair.what);
    }
}

#[test]
fn the_page_that_is_being_filled_stays_wherever_the_hand_is() {
    for layer in &layers()[..2] {
        let (page, here) = (layer.page as usize, 2);
        let mut pair = Pair::new(layer, true, [3, here], 3);
        pair.prefill(65);
        for _ in 0..3 * page {
            // As if every page had been read in the step before, and the hand came to this one first.
            let filled = pair.length / page;
            let table = pair.tiered.read_i32(Buffer::PageTable);
            pair.tiered.write_i32(Buffer::Hand, &[table[filled]]);
            pair.tiered.write_i32(Buffer::Reads, &vec![2 * pair.length as i32 + 1; table.len()]);
            pair.decode(None);
            let slot = pair.tiered.read_i32(Buffer::PageTable)[filled];
            assert!((slot as usize) < here, "position {} was written on the host", pair.length - 1);
        }
    }
}
