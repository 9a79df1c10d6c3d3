//! One attention layer on a [`Host`]: interprets the launch lists of a [`Program`] as a device does.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use half::{bf16, f16};
use ihip_dsl::emit::{
    Activation, Buffer, Element, Extent, Family, Kernel, Launch, Paging, Program, Slots, Value, step,
};
use ihip_dsl::tuning::Tunings;
use ihip_dsl::{KvType, LayerPlan, Plan, Renewal};

use super::descents::recorded;
use super::host::{Handle, Host, HostValue};

/// A layer with its cache and everything that its kernels need.
pub struct Attention {
    host: Box<dyn Host>,
    program: Program,
    /// Where its cache has two tiers.
    paging: Option<Paging>,
    kernels: BTreeMap<String, Kernel>,
    recording: Option<Recording>,
    /// Names of kernels that have run.
    launched: BTreeSet<String>,
    extent: Extent,
    buffers: BTreeMap<Buffer, (Handle, usize)>,
    /// Queries, keys and values of a row.
    qkv_row: usize,
    /// Elements of an output row.
    out_row: usize,
}

/// Scans that also write down where their descents end.
struct Recording {
    /// By the name of the kernel that does not.
    kernels: BTreeMap<String, Kernel>,
    descents: Handle,
}

/// What one call left behind besides its output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masks {
    /// For every stage but the first: the chunks that entered it, before they were split, for each block of the stage
    /// before and each of its rankings. Of prefill only.
    pub kept: Vec<Vec<Vec<i32>>>,
    /// The blocks that count, for every query block and each of its rankings.
    pub lists: Vec<Vec<i32>>,
}

impl Attention {
    /// Layer 0 of `plan`, for calls up to `extent`. Pages lie in the cache in an order of their own.
    ///
    /// # Panics
    /// Where the plan has heads that kernels are not made for.
    #[must_use]
    pub fn new(host: Box<dyn Host>, plan: &Plan, activation: Activation, extent: Extent) -> Self {
        let pages = extent.tokens.div_ceil(plan.geometry().page as usize);
        Self::repeating(host, plan, activation, extent, pages)
    }

    /// The same with a cache of only `held` pages, over and over: a long sequence that takes little memory.
    ///
    /// # Panics
    /// Where the plan has heads that kernels are not made for.
    #[must_use]
    pub fn repeating(host: Box<dyn Host>, plan: &Plan, activation: Activation, extent: Extent, held: usize) -> Self {
        let instructions = host.instructions();
        let program =
            Program::with(plan, activation, instructions, Tunings::default()).unwrap_or_else(|error| panic!("{error}"));
        Self::running(host, program, extent, held)
    }

    /// Layer 0 of what `program` runs, with a cache of `held` pages.
    #[must_use]
    pub fn running(host: Box<dyn Host>, program: Program, extent: Extent, held: usize) -> Self {
        Self::allocated(host, program, extent, held, None)
    }

    /// The same with a cache of two tiers, `keys` slots of keys and `values` of values on the GPU.
    #[must_use]
    pub fn tiered(host: Box<dyn Host>, program: Program, extent: Extent, [keys, values]: [usize; 2]) -> Self {
        let pages = extent.tokens.div_ceil(program.plan().geometry().page as usize);
        let paging = Paging::new(&program, Slots { pages, keys, values });
        let mut attention = Self::allocated(host, program, extent, pages, Some(paging));
        attention.restart();
        attention
    }

    /// Begins another request in the memory of this one, whose keys and values stay there: pages lie as at first, and nothing
    /// was read. For a cache of two tiers.
    pub fn restart(&mut self) {
        let Some(paging) = self.paging.clone() else { return };
        let storage = self.program.layer_state(0, self.extent).into_iter().chain(paging.layer_state(0));
        for storage in storage.filter(|storage| storage.zeroed) {
            self.write(storage.buffer, &vec![0; storage.bytes()]);
        }
        let residents = paging.residents(1);
        let mut table = vec![0; residents.len()];
        for (slot, page) in residents.iter().enumerate() {
            table[*page as usize] = slot as i32;
        }
        self.write_i32(Buffer::PageTable, &table);
        let residents: Vec<i32> = residents[..paging.slots().values].iter().map(|page| *page as i32).collect();
        self.write_i32(Buffer::Residents, &residents);
    }

    fn allocated(
        mut host: Box<dyn Host>,
        program: Program,
        extent: Extent,
        held: usize,
        paging: Option<Paging>,
    ) -> Self {
        let (geometry, activation) = (*program.plan().geometry(), program.activation());
        let mut kernels = program.kernels();
        kernels.extend(paging.iter().flat_map(Paging::kernels));
        host.prepare(&kernels);
        let kernels = kernels.into_iter().map(|kernel| (kernel.name.clone(), kernel)).collect();
        let head_dim = geometry.head_dim as usize;
        let qkv_row = (geometry.query_heads + 2 * geometry.kv_heads) as usize * head_dim;
        let out_row = geometry.query_heads as usize * head_dim;
        let pages = extent.tokens.div_ceil(geometry.page as usize);
        let cached = held * geometry.page_bytes();

        let positions = program.rope_positions(extent);
        let activation = activation.element().bytes();
        let mut sizes = vec![
            (Buffer::Step, step::WORDS * 4, true),
            (Buffer::Qkv, extent.rows * qkv_row * activation, false),
            (Buffer::Out, extent.rows * out_row * activation, false),
            (Buffer::Keys, cached, false),
            (Buffer::Values, cached, false),
            (Buffer::PageTable, pages * 4, false),
            (Buffer::RopeTable, positions * head_dim / 2 * 8, false),
            (Buffer::Frequencies, head_dim / 2 * 8, false),
        ];
        let mut storage = program.workspace(extent);
        storage.extend(program.layer_state(0, extent));
        if let Some(paging) = &paging {
            sizes.extend([Buffer::StagedKeys, Buffer::StagedValues].map(|buffer| (buffer, cached, false)));
            storage.extend(paging.layer_state(0));
        }
        sizes.extend(storage.iter().map(|storage| (storage.buffer, storage.bytes(), storage.zeroed)));
        let mut buffers = BTreeMap::new();
        for (buffer, bytes, zeroed) in sizes {
            let handle = host.allocate(&format!("{buffer:?}"), bytes);
            if zeroed {
                host.write(handle, 0, &vec![0; bytes]);
            }
            buffers.insert(buffer, (handle, bytes));
        }

        let launched = BTreeSet::new();
        let mut attention =
            Self { host, program, paging, kernels, recording: None, launched, extent, buffers, qkv_row, out_row };
        // Neighbouring pages of the sequence are no neighbours in the cache: a kernel that forgets the table is found.
        let table: Vec<u32> = (0..pages).map(|page| (held - 1 - page % held) as u32).collect();
        attention.write(Buffer::PageTable, &table.iter().flat_map(|page| page.to_ne_bytes()).collect::<Vec<u8>>());
        let frequencies = attention.program.plan().frequencies().to_vec();
        attention.write(Buffer::Frequencies, &frequencies.iter().flat_map(|f| f.to_ne_bytes()).collect::<Vec<u8>>());
        let angles = (0..positions).flat_map(|position| {
            frequencies.iter().flat_map(move |frequency| {
                let angle = position as f64 * frequency;
                [angle.cos() as f32, angle.sin() as f32]
            })
        });
        attention.write(Buffer::RopeTable, &angles.flat_map(f32::to_ne_bytes).collect::<Vec<u8>>());
        attention
    }

    /// Lets the cache hold keys and values of the positions from `first` on, as if earlier calls had appended them.
    /// Both are `[keys, kv_heads, head_dim]`.
    pub fn append(&mut self, first: usize, keys: &[f32], values: &[f32]) {
        let query = self.out_row;
        let row = (self.qkv_row - query) / 2;
        let rows: Vec<_> = keys.chunks(row).zip(values.chunks(row)).collect();
        for (call, rows) in rows.chunks(self.extent.rows).enumerate() {
            let mut qkv = Vec::new();
            for (key, value) in rows {
                qkv.extend(std::iter::repeat_n(0.0, query));
                qkv.extend_from_slice(key);
                qkv.extend_from_slice(value);
            }
            let start = first + call * self.extent.rows;
            self.begin(start, rows.len(), self.extent.tokens, &qkv);
            let launches = self.program.prefill(0, self.extent, rows.len(), self.extent.tokens);
            self.launch_appends(&launches);
        }
    }

    /// Puts a prefill call in place and returns its launches: `qkv` is `[rows, qkv_row]`.
    pub fn begin_prefill(&mut self, start: usize, t_max: usize, qkv: &[f32]) -> Vec<Launch> {
        let rows = qkv.len() / self.qkv_row;
        self.begin(start, rows, t_max, qkv);
        self.begin_calls(t_max);
        self.prefill_launches(rows, t_max)
    }

    fn prefill_launches(&self, rows: usize, t_max: usize) -> Vec<Launch> {
        match &self.paging {
            Some(paging) => paging.prefill(0, self.extent, rows, t_max),
            None => self.program.prefill(0, self.extent, rows, t_max),
        }
    }

    /// What comes before the calls of a prefill step, the first laid out for `t_max` keys: the page of the token that follows
    /// it is claimed, and what earlier steps have left is staged.
    fn begin_calls(&mut self, t_max: usize) {
        let Some(paging) = self.paging.clone() else { return };
        self.launch(&paging.claim());
        if paging.is_staged(0) {
            self.stage(&paging, t_max);
        }
    }

    /// Puts a decoding step in place and returns its launches: `qkv` is one row.
    pub fn begin_decode(
        &mut self,
        position: usize,
        t_max: usize,
        renewal: impl Into<Renewal>,
        qkv: &[f32],
    ) -> Vec<Launch> {
        let renewal = renewal.into();
        self.begin(position, 1, t_max, qkv);
        match &self.paging {
            Some(paging) => paging.decode(0, self.extent, renewal),
            None => self.program.decode(0, self.extent, renewal),
        }
    }

    /// A prefill call: `qkv` is `[rows, qkv_row]`. Returns the output and the masks.
    pub fn prefill(&mut self, start: usize, t_max: usize, qkv: &[f32]) -> (Vec<f32>, Masks) {
        let mut calls = self.prefill_calls(start, t_max, &[qkv], Self::run_call);
        calls.remove(0)
    }

    /// A prefill step of two calls, of which the first has `first` rows. Returns the outputs and the masks of both.
    pub fn prefill_in_two(&mut self, start: usize, t_max: usize, first: usize, qkv: &[f32]) -> [(Vec<f32>, Masks); 2] {
        let (one, other) = qkv.split_at(first * self.qkv_row);
        let calls = self.prefill_calls(start, t_max, &[one, other], Self::run_call);
        calls.try_into().expect("as many calls")
    }

    /// A prefill step of several calls, each `[rows, qkv_row]`. `run` sees that the launches of each happen, and is told
    /// positions of its rows.
    pub fn prefill_calls<T>(
        &mut self,
        start: usize,
        t_max: usize,
        calls: &[&[f32]],
        mut run: impl FnMut(&mut Self, Range<usize>, &[Launch]) -> T,
    ) -> Vec<T> {
        let rows = |qkv: &[f32]| qkv.len() / self.qkv_row;
        let calls: Vec<_> = calls.iter().map(|qkv| (rows(qkv), *qkv)).collect();
        let end = start + calls.iter().map(|(rows, _)| rows).sum::<usize>();
        let (mut first, mut returned) = (start, Vec::new());
        for (rows, qkv) in calls {
            self.begin(first, rows, t_max, qkv);
            self.write_words(step::BEGIN, &[start as i32, end as i32]);
            if first == start {
                self.begin_calls(t_max);
            }
            let launches = self.prefill_launches(rows, t_max);
            returned.push(run(self, first..first + rows, &launches));
            first += rows;
        }
        self.end_calls();
        returned
    }

    /// Runs the launches of a prefill call for `rows`, and returns its output and masks.
    fn run_call(&mut self, rows: Range<usize>, launches: &[Launch]) -> (Vec<f32>, Masks) {
        self.launch(launches);
        self.prefilled(rows.len())
    }

    fn end_calls(&mut self) {
        if let Some(paging) = self.paging.clone().filter(|paging| paging.is_staged(0)) {
            self.unstage(&paging);
        }
    }

    /// Outputs and masks of a prefill call of `rows` rows.
    fn prefilled(&mut self, rows: usize) -> (Vec<f32>, Masks) {
        let mut masks = Masks::default();
        if let LayerPlan::Pruned(layer) = &self.program.plan().prefill(0).clone() {
            for stage in layer.stages.iter().skip(1) {
                let before = layer.stages[stage.index - 1].query_block;
                let lists = self.read_i32(Buffer::Lists { stage: stage.index });
                let width = stage.keep_chunks.unwrap_or(0) + 1;
                let lists = lists.chunks(width).take(rows.div_ceil(before) * self.rankings());
                masks.kept.push(lists.map(|list| list[..list[width - 1] as usize].to_vec()).collect());
            }
            if !layer.stages.is_empty() {
                let (blocks, counts) = (self.read_i32(Buffer::Blocks), self.read_i32(Buffer::Counts));
                let lists = blocks.chunks(layer.keep_blocks).zip(counts).take(self.program.lists(layer, rows));
                masks.lists = lists.map(|(list, count)| list[..count as usize].to_vec()).collect();
            }
        }
        (self.out(rows), masks)
    }

    /// A decoding step: `qkv` is one row. Returns the output and the list in force, one for each ranking.
    pub fn decode(
        &mut self,
        position: usize,
        t_max: usize,
        renewal: impl Into<Renewal>,
        qkv: &[f32],
    ) -> (Vec<f32>, Vec<Vec<i32>>) {
        let renewal = renewal.into();
        let mut launches = self.begin_decode(position, t_max, renewal, qkv);
        launches.extend(self.moves(renewal));
        self.launch(&launches);
        let width = match self.program.plan().decode(0) {
            LayerPlan::Pruned(layer) if !layer.stages.is_empty() => layer.keep_blocks,
            _ => return (self.out(1), vec![Vec::new()]),
        };
        let (blocks, counts) = (self.read_i32(Buffer::CachedBlocks), self.read_i32(Buffer::CachedCount));
        let lists = blocks.chunks(width).zip(counts).map(|(list, count)| list[..count as usize].to_vec()).collect();
        (self.out(1), lists)
    }

    /// Launches that follow the attention of a decoding step, and move its pages.
    pub fn moves(&self, renewal: Renewal) -> Vec<Launch> {
        self.paging.iter().flat_map(|paging| paging.promote(0, renewal)).collect()
    }

    /// What a device has staged when a step of prefill begins: slots on the GPU are the same memory, and keys of the
    /// others have been copied, with values where all of them are looked at. The rest nobody may read.
    fn stage(&mut self, paging: &Paging, t_max: usize) {
        let Slots { pages, values, .. } = paging.slots();
        let values = if paging.has_staged_values(0, t_max) { pages } else { values };
        for (from, to, slots) in
            [(Buffer::Keys, Buffer::StagedKeys, pages), (Buffer::Values, Buffer::StagedValues, values)]
        {
            let mut bytes = self.read(from);
            bytes[slots * Paging::page_bytes(&self.program)..].fill(0xff);
            self.write(to, &bytes);
        }
    }

    /// What is at home once it ends: slots on the GPU are the same memory.
    fn unstage(&mut self, paging: &Paging) {
        let Slots { keys, values, .. } = paging.slots();
        for (from, to, slots) in
            [(Buffer::StagedKeys, Buffer::Keys, keys), (Buffer::StagedValues, Buffer::Values, values)]
        {
            let bytes = self.read(from);
            self.write(to, &bytes[..slots * Paging::page_bytes(&self.program)]);
        }
    }

    fn write_words(&mut self, first: usize, words: &[i32]) {
        let (handle, _) = self.buffers[&Buffer::Step];
        self.host.write(handle, first * 4, &words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>());
    }

    /// Rankings of a query block.
    #[must_use]
    pub fn rankings(&self) -> usize {
        match self.program.plan().decode(0) {
            LayerPlan::Dense => 1,
            LayerPlan::Pruned(layer) => self.program.plan().geometry().rankings(layer.ranking) as usize,
        }
    }

    /// Whether every score is zero again, as the next call needs it.
    pub fn scores_are_zero(&mut self) -> bool {
        !self.buffers.contains_key(&Buffer::Scores) || self.read_i32(Buffer::Scores).iter().all(|&score| score == 0)
    }

    /// Forgets every score, as `select` does.
    pub fn zero_scores(&mut self) {
        if let Some(&(handle, bytes)) = self.buffers.get(&Buffer::Scores) {
            self.host.write(handle, 0, &vec![0; bytes]);
        }
    }

    /// Puts rows of scores `stride` entries apart, which launches are told with [`striding`]. Of each only the first
    /// `entries` are there.
    pub fn spread_scores(&mut self, rows: usize, entries: usize, stride: usize) {
        let bytes = ((rows - 1) * stride + entries) * 4;
        let handle = self.host.allocate("Scores", bytes);
        for row in 0..rows {
            self.host.write(handle, row * stride * 4, &vec![0; entries * 4]);
        }
        self.buffers.insert(Buffer::Scores, (handle, bytes));
    }

    fn begin(&mut self, start: usize, rows: usize, t_max: usize, qkv: &[f32]) {
        assert!(rows <= self.extent.rows && t_max <= self.extent.tokens, "{rows} rows, {t_max} keys");
        let mut words = [0_i32; step::WORDS];
        words[step::START] = start as i32;
        words[step::ROWS] = rows as i32;
        words[step::T_MAX] = t_max as i32;
        words[step::BEGIN] = start as i32;
        words[step::END] = (start + rows) as i32;
        // A step need not begin in the first row of what the model computed.
        let first_row = self.extent.rows - rows;
        words[step::FIRST_ROW] = first_row as i32;
        self.write(Buffer::Step, &words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>());
        let bytes = encode(self.program.activation().element(), qkv);
        let at = first_row * bytes.len() / rows;
        let (handle, _) = self.buffers[&Buffer::Qkv];
        self.host.write(handle, at, &bytes);
    }

    /// The first `rows` rows of the output.
    pub fn out(&mut self, rows: usize) -> Vec<f32> {
        let element = self.program.activation().element();
        let row = self.out_row * element.bytes();
        let (handle, _) = self.buffers[&Buffer::Out];
        let bytes = self.host.read(handle, (self.extent.rows - rows) * row, rows * row);
        decode(element, &bytes)
    }

    /// Runs launches in order.
    pub fn launch(&mut self, launches: &[Launch]) {
        for launch in launches {
            self.host.launch(&self.kernels[&launch.kernel], launch.grid, &self.values(launch));
            self.launched.insert(launch.kernel.clone());
        }
    }

    /// Runs a kernel of a test over the buffers of the layer, and behind them `found`.
    pub fn launch_beside(&mut self, kernel: &Kernel, grid: [u32; 3], arguments: &[Value], found: Handle) {
        let mut values: Vec<_> = arguments.iter().map(|value| self.value(*value)).collect();
        values.push(HostValue::Buffer(found, 0));
        self.host.launch(kernel, grid, &values);
    }

    /// Runs launches in order, and returns where descents into chunks ended: `[query blocks][query heads][chunks]` as
    /// [`recorded`] has it, −1 where none began, with `chunks` chunks a row.
    pub fn launch_recorded(&mut self, launches: &[Launch], blocks: usize, chunks: usize) -> Vec<i32> {
        let heads = self.program.plan().geometry().query_heads as usize;
        let recording = match self.recording.take() {
            Some(recording) => recording,
            None => {
                let kernels = self.kernels.iter();
                let kernels: BTreeMap<_, _> =
                    kernels.filter_map(|(name, kernel)| Some((name.clone(), recorded(kernel)?))).collect();
                self.host.prepare(&kernels.values().cloned().collect::<Vec<Kernel>>());
                let descents = self.host.allocate("Descents", self.buffers[&Buffer::Scores].1 * heads);
                Recording { kernels, descents }
            }
        };
        let bytes = blocks * heads * chunks * 4;
        self.host.write(recording.descents, 0, &vec![0xff; bytes]);
        for launch in launches {
            let mut values = self.values(launch);
            let kernel = recording.kernels.get(&launch.kernel);
            if kernel.is_some() {
                values.extend([HostValue::Buffer(recording.descents, 0), HostValue::I32(chunks as i32)]);
            }
            self.host.launch(kernel.unwrap_or(&self.kernels[&launch.kernel]), launch.grid, &values);
        }
        let descents = self.host.read(recording.descents, 0, bytes);
        self.recording = Some(recording);
        descents.as_chunks().0.iter().map(|&word| i32::from_ne_bytes(word)).collect()
    }

    /// What a launch hands its kernel.
    fn values(&self, launch: &Launch) -> Vec<HostValue> {
        launch.arguments.iter().map(|value| self.value(*value)).collect()
    }

    fn value(&self, value: Value) -> HostValue {
        match value {
            Value::Buffer(buffer) => HostValue::Buffer(self.buffers[&buffer].0, 0),
            Value::Part(buffer, behind) => HostValue::Buffer(self.buffers[&buffer].0, behind),
            Value::I32(value) => HostValue::I32(value),
        }
    }

    /// Kernels of the program that never ran.
    #[must_use]
    pub fn never_launched(&self) -> Vec<&str> {
        self.kernels.keys().filter(|name| !self.launched.contains(*name)).map(String::as_str).collect()
    }

    /// The kernel of a launch.
    #[must_use]
    pub fn kernel(&self, launch: &Launch) -> &Kernel {
        &self.kernels[&launch.kernel]
    }

    /// Runs the launches that come first and fill the cache, and returns the others.
    pub fn launch_appends<'l>(&mut self, launches: &'l [Launch]) -> &'l [Launch] {
        let appends = launches.iter().take_while(|launch| self.family(launch) == Family::Append).count();
        self.launch(&launches[..appends]);
        &launches[appends..]
    }

    /// What a launch does.
    #[must_use]
    pub fn family(&self, launch: &Launch) -> Family {
        self.kernels[&launch.kernel].family
    }

    fn write(&mut self, buffer: Buffer, bytes: &[u8]) {
        let (handle, size) = self.buffers[&buffer];
        assert!(bytes.len() <= size, "{} bytes into {buffer:?} of {size}", bytes.len());
        self.host.write(handle, 0, bytes);
    }

    /// Writes the front of a buffer of i32.
    pub fn write_i32(&mut self, buffer: Buffer, values: &[i32]) {
        self.write(buffer, &values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<u8>>());
    }

    /// Writes the front of a buffer of f32.
    pub fn write_f32(&mut self, buffer: Buffer, values: &[f32]) {
        self.write(buffer, &values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<u8>>());
    }

    /// Changes byte `at` of a buffer, so that a test can see that it would notice.
    pub fn spoil(&mut self, buffer: Buffer, at: usize) {
        let (handle, _) = self.buffers[&buffer];
        let spoilt = self.host.read(handle, at, 1)[0] ^ 1;
        self.host.write(handle, at, &[spoilt]);
    }

    /// Everything in a buffer.
    pub fn read(&mut self, buffer: Buffer) -> Vec<u8> {
        let (handle, bytes) = self.buffers[&buffer];
        self.host.read(handle, 0, bytes)
    }

    /// Everything in a buffer of i32.
    pub fn read_i32(&mut self, buffer: Buffer) -> Vec<i32> {
        let bytes = self.read(buffer);
        let (words, _) = bytes.as_chunks();
        words.iter().map(|&word| i32::from_ne_bytes(word)).collect()
    }

    /// What runs here.
    #[must_use]
    pub const fn program(&self) -> &Program {
        &self.program
    }
}

/// A launch of a scan or a cut whose rows of scores are `stride` entries apart.
#[must_use]
pub fn striding(launch: &Launch, stride: i32) -> Launch {
    let mut launch = launch.clone();
    let last = launch.arguments.last_mut().expect("the stride is the last argument");
    assert!(matches!(last, Value::I32(_)), "{last:?} is no stride");
    *last = Value::I32(stride);
    launch
}

/// `values` as elements of a buffer.
#[must_use]
pub fn encode(element: Element, values: &[f32]) -> Vec<u8> {
    match element {
        Element::E4m3 => KvType::E4m3.encode(values, 1),
        Element::E5m2 => KvType::E5m2.encode(values, 1),
        Element::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_ne_bytes()).collect(),
        Element::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_ne_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_ne_bytes()).collect(),
    }
}

/// Elements of a buffer as f32.
#[must_use]
pub fn decode(element: Element, bytes: &[u8]) -> Vec<f32> {
    match element {
        Element::E4m3 => KvType::E4m3.decode(bytes, 1, 1),
        Element::E5m2 => KvType::E5m2.decode(bytes, 1, 1),
        Element::Bf16 => bytes.as_chunks().0.iter().map(|&x| bf16::from_ne_bytes(x).to_f32()).collect(),
        Element::F16 => bytes.as_chunks().0.iter().map(|&x| f16::from_ne_bytes(x).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|&x| f32::from_ne_bytes(x)).collect(),
    }
}
