//! A cache of two tiers: pages move as `promote`, `exchange`, `gather` and `write_back` say, and whatever moves, every
//! step gives the same bits as one that has everything on the GPU, and every row is where the table says.

use std::collections::BTreeMap;

use ihip_dsl::emit::{Activation, Buffer, Extent, Paging, Program, Slots, tally};
use ihip_tests::support::attention::Attention;
use ihip_tests::support::host::host;

use super::{Layer, Noise, TOKENS, layers};

/// Rows of a step of prefill at most.
const ROWS: usize = 128;

/// A request that runs side by side on two tiers and on one.
struct Pair {
    layer: Layer,
    tiered: Attention,
    whole: Attention,
    noise: Noise,
    length: usize,
    /// What runs, for messages.
    what: String,
}

impl Pair {
    /// `keys` and `values` slots on the GPU.
    fn new(layer: &Layer, dense: bool, slots: [usize; 2]) -> Self {
        let plan = if dense { ihip_dsl::Plan::dense(layer.geometry(), layer.frequencies(), 1) } else { layer.plan() };
        let program = Program::new(&plan, Activation::F32).expect("a usual head");
        let extent = Extent { rows: ROWS, tokens: TOKENS };
        let pages = TOKENS.div_ceil(layer.page as usize);
        Self {
            tiered: Attention::tiered(host(), program.clone(), extent, slots),
            whole: Attention::running(host(), program, extent, pages),
            layer: layer.clone(),
            noise: Noise(7),
            length: 0,
            what: format!("{slots:?} of {pages} slots, {layer:?}"),
        }
    }

    fn rows(&mut self, rows: usize) -> Vec<f32> {
        let row = self.layer.query_row() + 2 * self.layer.key_row();
        (0..rows * row).map(|_| self.noise.next()).collect()
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

    fn decode(&mut self, restart: Option<usize>) {
        let qkv = self.rows(1);
        let (expected, lists) = self.whole.decode(self.length, TOKENS, restart, &qkv);
        let (found, found_lists) = self.tiered.decode(self.length, TOKENS, restart, &qkv);
        assert_eq!(found_lists, lists, "lists at position {}", self.length);
        assert!(found == expected, "outputs at position {} differ, {}", self.length, self.what);
        self.length += 1;
        self.check();
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
        let page_bytes = Paging::page_bytes(self.whole.program());
        let others = self.whole.read_i32(Buffer::PageTable);
        let page = self.layer.page as usize;
        let token = page_bytes / page / self.layer.heads.1 as usize;
        for buffer in [Buffer::Keys, Buffer::Values] {
            let (here, there) = (self.tiered.read(buffer), self.whole.read(buffer));
            for row in 0..self.length * self.layer.heads.1 as usize {
                let (position, head) = (row / self.layer.heads.1 as usize, row % self.layer.heads.1 as usize);
                let at = |table: &[i32]| {
                    let slot = table[position / page] as usize;
                    slot * page_bytes + (head * page + position % page) * token
                };
                let (at_here, at_there) = (at(&table), at(&others));
                assert!(
                    here[at_here..at_here + token] == there[at_there..at_there + token],
                    "{buffer:?} of position {position} and head {head}, {} tokens",
                    self.length
                );
            }
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
}

#[test]
fn whatever_moves_every_step_gives_the_same_bits_and_every_row_is_where_the_table_says() {
    for (number, layer) in layers().into_iter().enumerate() {
        let pages = TOKENS.div_ceil(layer.page as usize);
        // All keys and some values, some of either, and the least: each for two layers and more.
        let [keys, values] = [[pages / 2, pages / 4], [pages, pages / 3], [3, 2]][number % 3];
        let mut pair = Pair::new(&layer, false, [keys, values]);
        for rows in [128, 128, 77] {
            pair.prefill(rows);
        }
        let stages = layer.pruning.stages.len();
        for step in 0..24 {
            pair.decode(if step % 4 == 0 && stages > 0 { Some(step / 4 % stages) } else { None });
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
}

#[test]
fn what_moves_pages_reads_as_if_a_person_had_written_it() {
    let layer = &layers()[1];
    let program = Program::new(&layer.plan(), Activation::F32).expect("a usual head");
    let kernels = Paging::new(&program, Slots { pages: 3, keys: 2, values: 1 }).kernels();
    let own = kernels.iter().map(|kernel| {
        let (heading, rest) = kernel.text.split_once("#line 1 \"prelude.cu\"\n").expect("a prelude");
        let (_, own) = rest.split_once("#line 1 \"").expect("the kernel's own text");
        format!("{}#line 1 \"{own}", heading)
    });
    insta::assert_snapshot!(own.collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_dense_layer_reads_every_page_where_it_is() {
    for layer in &layers()[..2] {
        let mut pair = Pair::new(layer, true, [6, 3]);
        pair.prefill(128);
        pair.prefill(99);
        for _ in 0..2 * layer.page {
            pair.decode(None);
        }
        pair.prefill(64);
        assert!(pair.check()["written keys"] > 0);
    }
}
