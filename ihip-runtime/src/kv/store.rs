//! The cache of the requests of one model in two tiers, as a CPU has it.

use std::sync::Arc;

use super::budget::{Room, Shape};
use super::error::{Kind, KvError};
use super::memory::Allocate;
use super::page::{Owners, PageId};
use super::pool::Tier;
use super::reader::Reader;
use super::region::{Counts, Region};
use super::traffic::{Placement, Reads, Tally, Tokens};

/// Keys and values of every layer.
#[derive(Debug)]
pub struct Store {
    shape: Shape,
    owners: Owners,
    /// Keys and values of each layer.
    layers: Vec<[Region; 2]>,
    /// Of rows that are read one by one.
    tally: Tally,
}

/// What a request has in a [`Store`]. It is given back by [`Store::release`].
#[derive(Debug, Default)]
#[must_use = "pages that are not released stay taken"]
pub struct Sequence {
    /// In order: one direct table for all layers and heads.
    pages: Vec<PageId>,
    /// Tokens that are written.
    length: usize,
}

impl Sequence {
    /// Tokens that are written.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Pages, in order.
    #[must_use]
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }
}

/// One row of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// The layer.
    pub layer: usize,
    /// Key or value.
    pub kind: Kind,
    /// The key-value head.
    pub head: usize,
    /// Position of the token.
    pub token: usize,
}

impl Store {
    /// A store with so many slots in each layer.
    ///
    /// # Errors
    /// [`KvError::Allocation`]; whatever was allocated before is given back.
    ///
    /// # Panics
    /// Where the tokens of a page are no power of two.
    pub fn new(shape: Shape, room: Room, allocator: &Arc<dyn Allocate>) -> Result<Self, KvError> {
        assert!(shape.page.is_power_of_two(), "a token's page is found by a shift");
        let region = |layer, slots, kind| Region::new(allocator, &shape, slots, (layer, kind));
        let layers = (0..shape.layers)
            .map(|layer| Ok([region(layer, room.keys, Kind::Keys)?, region(layer, room.values, Kind::Values)?]));
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Self { layers, owners: Owners::default(), shape, tally: Tally::default() })
    }

    /// Its sizes.
    #[must_use]
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    fn regions_mut(&mut self) -> impl Iterator<Item = &mut Region> {
        self.layers.iter_mut().flatten()
    }

    pub(super) fn region(&self, layer: usize, kind: Kind) -> &Region {
        &self.layers[layer][kind as usize]
    }

    fn region_mut(&mut self, layer: usize, kind: Kind) -> &mut Region {
        &mut self.layers[layer][kind as usize]
    }

    /// Elements of a row within its page.
    fn elements(&self, row: Row) -> std::ops::Range<usize> {
        let Shape { head_dim, page, .. } = self.shape;
        let first = (row.head * page + row.token % page) * head_dim;
        first..first + head_dim
    }

    /// Makes room on the GPU for `tokens` more tokens of `sequence`, and gives its new pages homes there. Pages that have
    /// not been read for long leave where that is needed.
    ///
    /// # Errors
    /// [`KvError::Full`], with nothing changed but where pages are.
    pub fn reserve(&mut self, sequence: &mut Sequence, tokens: usize) -> Result<(), KvError> {
        let needed = (sequence.length + tokens).div_ceil(self.shape.page);
        self.put(sequence, needed.saturating_sub(sequence.pages.len()))
    }

    fn put(&mut self, sequence: &mut Sequence, pages: usize) -> Result<(), KvError> {
        for (layer, regions) in self.layers.iter_mut().enumerate() {
            for (region, kind) in regions.iter_mut().zip(Kind::ALL) {
                if !region.make_room(pages) {
                    let free = |tier| region.pool().free(tier);
                    return Err(KvError::Full { pages, kind, layer, gpu: free(Tier::Gpu), host: free(Tier::Host) });
                }
            }
        }
        for _ in 0..pages {
            let page = self.owners.name();
            self.regions_mut().for_each(|region| region.put(page));
            sequence.pages.push(page);
        }
        Ok(())
    }

    /// A row of a token that was reserved and is not committed, to be written.
    ///
    /// # Panics
    /// Where it is another.
    pub fn row_mut(&mut self, sequence: &Sequence, row: Row) -> &mut [f32] {
        assert!(row.token >= sequence.length, "tokens that are committed are never written");
        let (page, elements) = (sequence.pages[row.token / self.shape.page], self.elements(row));
        &mut self.region_mut(row.layer, row.kind).open(page)[elements]
    }

    /// Says that the next `tokens` tokens are written in every layer: pages that they fill may move from now on.
    ///
    /// # Panics
    /// Where they were not reserved.
    pub fn commit(&mut self, sequence: &mut Sequence, tokens: usize) {
        let page = self.shape.page;
        let full = sequence.length / page..(sequence.length + tokens) / page;
        for page in &sequence.pages[full] {
            self.regions_mut().for_each(|region| region.fill(*page));
        }
        sequence.length += tokens;
    }

    /// A row that was written. One on the host is read in place, and its page comes to the GPU after the step.
    ///
    /// # Panics
    /// Where the sequence does not have it.
    #[must_use]
    pub fn row<'a>(&'a self, sequence: &'a Sequence, row: Row) -> &'a [f32] {
        assert!(row.token < sequence.length, "only what is committed is read");
        self.reader(sequence, (row.layer, row.kind, row.head), &self.tally).row(row.token)
    }

    /// Reads rows of one head's keys or values in one layer, for one task; what was read where is added to `tally`.
    /// Tokens that are reserved and not committed may be read as well: by the step that writes them.
    #[must_use]
    pub fn reader<'a>(&'a self, sequence: &'a Sequence, head: (usize, Kind, usize), tally: &'a Tally) -> Reader<'a> {
        Reader::new(self, sequence, head, tally)
    }

    /// A second request with the same tokens: full pages are shared, the last one is copied where it is not full.
    ///
    /// # Errors
    /// [`KvError::Full`] where there is no room for that copy.
    pub fn fork(&mut self, sequence: &Sequence) -> Result<Sequence, KvError> {
        let full = sequence.length / self.shape.page;
        let mut forked = Sequence { pages: Vec::new(), length: sequence.length };
        if !sequence.length.is_multiple_of(self.shape.page) {
            self.put(&mut forked, 1)?;
            let (from, to) = (sequence.pages[full], forked.pages[0]);
            for region in self.regions_mut() {
                let tokens = region.open(from).to_vec();
                region.open(to).copy_from_slice(&tokens);
            }
        }
        for page in &sequence.pages[..full] {
            self.owners.share(*page);
        }
        forked.pages.splice(..0, sequence.pages[..full].iter().copied());
        Ok(forked)
    }

    /// Gives back what a request has, whether it ended or was cancelled, and whatever its pages are doing.
    pub fn release(&mut self, sequence: Sequence) {
        for page in sequence.pages {
            if self.owners.give_up(page) {
                self.regions_mut().for_each(|region| region.release(page));
            }
        }
    }

    /// What is done between steps: pages that were missed come to the GPU, others leave it.
    pub fn settle(&mut self) {
        self.regions_mut().for_each(Region::settle);
    }

    /// Begins to move one page; its copy happens when it is waited for. Whether it moves.
    pub fn begin(&mut self, layer: usize, kind: Kind, page: PageId, tier: Tier) -> bool {
        self.region_mut(layer, kind).begin(page, tier)
    }

    /// Lets one copy happen, if one was begun, and ends it only if `end` says so: a host looks when it likes.
    pub fn copy_one(&mut self, layer: usize, kind: Kind, end: bool) {
        let region = self.region_mut(layer, kind);
        region.copy_one();
        if end {
            region.end();
        }
    }

    /// A row wherever it is, for a test: the cache does not note that it was read.
    #[must_use]
    pub fn peek(&self, sequence: &Sequence, row: Row) -> &[f32] {
        let page = sequence.pages[row.token / self.shape.page];
        &self.region(row.layer, row.kind).peek(page)[self.elements(row)]
    }

    /// Spoils a row where it is, so that a test can see that it would notice.
    pub fn spoil(&mut self, sequence: &Sequence, row: Row) {
        let (page, elements) = (sequence.pages[row.token / self.shape.page], self.elements(row));
        for element in &mut self.region_mut(row.layer, row.kind).page_mut(page)[elements] {
            *element = -*element - 1.0;
        }
    }

    /// What happened so far, of reads those of single rows.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let Reads { hits, misses } = self.tally.reads();
        let mut counts = Counts { hits, misses, ..Counts::default() };
        self.layers.iter().flatten().for_each(|region| counts += region.moved());
        counts
    }

    /// Where the tokens of a request are, the mean over layers.
    #[must_use]
    pub fn residence(&self, sequence: &Sequence) -> Placement {
        let tokens = |kind| {
            let on_gpu = |layer: usize| {
                let pool = self.region(layer, kind).pool();
                let is_on_gpu = |page: &&PageId| pool.home(**page).is_some_and(|home| home.tier == Tier::Gpu);
                sequence.pages.iter().filter(is_on_gpu).count()
            };
            let pages: usize = (0..self.layers.len()).map(on_gpu).sum();
            let gpu = (pages * self.shape.page / self.layers.len().max(1)).min(sequence.length);
            Tokens { gpu, host: sequence.length - gpu }
        };
        Placement { keys: tokens(Kind::Keys), values: tokens(Kind::Values), ..Placement::default() }
    }

    /// From here on, which pages are read is remembered for [`Store::pages_read`], or is not.
    pub fn record_reads(&mut self, record: bool) {
        self.regions_mut().for_each(|region| region.record(record));
    }

    /// Pages of a request whose keys, or values, were read in `layer` since this was last asked, by their numbers in the
    /// request, ascending; none where nothing is recorded.
    #[must_use]
    pub fn pages_read(&self, sequence: &Sequence, layer: usize, kind: Kind) -> Vec<u32> {
        let region = self.region(layer, kind);
        let pages = (0_u32..).zip(&sequence.pages);
        pages.filter(|(_, page)| region.take_read(**page)).map(|(number, _)| number).collect()
    }

    /// Moves that were begun and have not ended.
    #[must_use]
    pub fn moving(&self) -> usize {
        self.layers.iter().flatten().map(Region::moving).sum()
    }

    /// Slots that are taken in a tier.
    #[must_use]
    pub fn taken(&self, tier: Tier) -> usize {
        let taken = |region: &Region| region.pool().slots(tier) - region.pool().free(tier);
        self.layers.iter().flatten().map(taken).sum()
    }

    /// Bytes that were allocated in a tier.
    #[must_use]
    pub fn bytes(&self, tier: Tier) -> u64 {
        self.layers.iter().flatten().map(|region| region.bytes(tier)).sum()
    }
}
