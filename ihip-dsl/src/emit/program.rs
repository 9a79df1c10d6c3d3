//! Kernels of a plan, and which of them a step of each kind of layer launches.

use thiserror::Error;

use super::Kernel;
use super::append::Append;
use super::attend_row::AttendRow;
use super::decode::{Merge, SplitDense};
use super::dense_path::DensePath;
use super::dense_row::DenseRow;
use super::functions::Shape;
use super::gather::Gather;
use super::launch::{Activation, Buffer, Element, Extent, Launch, Storage, Value};
use super::score::{Score, row_storage};
use super::scoring::{Operand, Stride, strides};
use super::select::Select;
use super::summarise::Summarise;
use super::tune::Tune;
use super::unit::{Unit, attend_of, units_of};
use super::units::Units;
use super::visible::MOST_TEAMS;
use crate::rope::{Branch, Extension, ScanDistance};
use crate::tuning::{Tunable, Tunings};
use crate::{AttendRope, LayerPlan, Plan, PrunedLayer, Renewal};

/// The CUDA side of a [`Plan`]: its kernels, what they run over, and in which order.
#[derive(Clone, Debug)]
pub struct Program {
    plan: Plan,
    shape: Shape,
    instructions: Instructions,
    tunings: Tunings,
    /// Of each of the plan's kinds of layers, where prompts begin densely.
    dense_paths: Vec<DensePath>,
    /// First halvings whose probes the GPU keeps.
    levels: usize,
    /// In the order in which layers need them.
    units: Units<Unit>,
}

/// What the text of kernels may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Instructions {
    /// What sm_80 and everything after it has; the emulator runs it.
    #[default]
    Portable,
    /// Besides, where it is faster, what sm_90a alone has.
    Hopper,
}

/// A plan that the kernels are not made for.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EmitError {
    /// A head of an unusual size.
    #[error(
        "kernels are made for heads of 32, 64, 96, … to 256 elements, and the model's have {head_dim}: run it on the cpu device"
    )]
    HeadDim {
        /// The model's head dimension.
        head_dim: u32,
    },
}

impl Program {
    /// Names every kernel of `plan`; their text is written by [`Program::kernels`].
    ///
    /// # Errors
    /// [`EmitError::HeadDim`] where the elements of a head are no multiple of 32, or more than 256.
    pub fn new(plan: &Plan, activation: Activation) -> Result<Self, EmitError> {
        Self::with(plan, activation, Instructions::Portable, Tunings::default())
    }

    /// The same with other `instructions`, which change nothing but the order of sums, and with what `tunings` choose for
    /// its kernels.
    ///
    /// # Errors
    /// Those of [`Program::new`].
    pub fn with(
        plan: &Plan,
        activation: Activation,
        instructions: Instructions,
        tunings: Tunings,
    ) -> Result<Self, EmitError> {
        let head_dim = plan.geometry().head_dim;
        if !(32..=256).contains(&head_dim) || !head_dim.is_multiple_of(32) {
            return Err(EmitError::HeadDim { head_dim });
        }
        Ok(Self::named(plan, Shape { geometry: *plan.geometry(), activation }, instructions, tunings, 0))
    }

    fn named(plan: &Plan, shape: Shape, instructions: Instructions, tunings: Tunings, levels: usize) -> Self {
        let dense_paths = vec![DensePath::default(); plan.kinds().len()];
        let mut program = Self {
            plan: plan.clone(),
            shape,
            instructions,
            tunings,
            dense_paths,
            levels,
            units: Units::new(plan.name()),
        };
        for (index, kind) in plan.kinds().iter().enumerate() {
            let layers = 0..plan.layers();
            let prefill = layers.clone().any(|layer| plan.prefill_kind(layer) == index);
            let decoding = layers.filter(|&layer| plan.decode_kind(layer) == index);
            let appending: Vec<_> = decoding.map(|layer| program.appending(layer).is_some()).collect();
            program.add(units_of(shape, instructions, kind, prefill, &appending, levels));
        }
        program
    }

    /// The same where prompts begin densely as long as that is estimated to take less time: those steps attend to every key
    /// at its true position, whatever the pipeline prunes.
    #[must_use]
    pub fn with_dense_path(mut self) -> Self {
        let plan = self.plan.clone();
        for (index, kind) in plan.kinds().iter().enumerate() {
            let path = DensePath::new(self.shape, kind, self.instructions);
            if path.tokens > 0 && (0..plan.layers()).any(|layer| plan.prefill_kind(layer) == index) {
                self.dense_paths[index] = path;
                let gather = (!kind.rotated_cache()).then(|| Unit::Gather(Gather::new(self.shape)));
                self.add(
                    gather.into_iter().chain([attend_of(self.shape, &LayerPlan::Dense, self.instructions)]).collect(),
                );
            }
        }
        self
    }

    /// The same over a cache of two tiers, where decoding reads the keys that the first `levels` halvings of a layer's first
    /// stage may probe from a place of their own on the GPU.
    #[must_use]
    pub fn keeping_probes(self, levels: usize) -> Self {
        let dense_path = self.dense_paths.iter().any(|path| path.tokens > 0);
        let program = Self::named(&self.plan, self.shape, self.instructions, self.tunings, levels);
        if dense_path { program.with_dense_path() } else { program }
    }

    /// First halvings whose probes the GPU keeps.
    #[must_use]
    pub const fn levels(&self) -> usize {
        self.levels
    }

    /// Where prompts begin densely in layers of the plan's kind `index`.
    ///
    /// # Panics
    /// Where the plan has no such kind.
    #[must_use]
    pub fn dense_path(&self, index: usize) -> DensePath {
        self.dense_paths[index]
    }

    /// Whether `layer` attends to every key in a prefill step whose grids are laid out for `t_max` keys.
    #[must_use]
    pub fn begins_densely(&self, layer: usize, t_max: usize) -> bool {
        t_max <= self.dense_path(self.plan.prefill_kind(layer)).tokens
    }

    /// Adds kernels with what is chosen for them, and names those that are new.
    fn add(&mut self, units: Vec<Unit>) {
        for unit in units {
            self.units.add(unit.chosen(self.shape, &self.tunings));
        }
    }

    /// The text of every kernel, layers that share constants sharing a kernel.
    #[must_use]
    pub fn kernels(&self) -> Vec<Kernel> {
        self.units.kernels()
    }

    /// The kernels of which something can be chosen, in the order in which layers need them.
    #[must_use]
    pub fn tunable(&self) -> Vec<Tunable> {
        let mut tunable: Vec<Tunable> = Vec::new();
        for (unit, name) in self.units.iter() {
            let site = unit.site(self.shape);
            if let Some(tuning) = unit.tuning().filter(|_| tunable.iter().all(|known| known.site != site)) {
                tunable.push(Tunable { site, kernel: name.to_owned(), tuning, space: unit.space() });
            }
        }
        tunable
    }

    /// The plan behind the kernels.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(super) const fn shape(&self) -> Shape {
        self.shape
    }

    /// Element type of [`Buffer::Qkv`] and [`Buffer::Out`].
    #[must_use]
    pub fn activation(&self) -> Activation {
        self.shape.activation
    }

    /// Positions that [`Buffer::RopeTable`] must cover: those of scan and attention, which stay small however long
    /// the sequence is, except that `chunk_indexed` needs one a chunk and `self_extend` one for 16 tokens.
    #[must_use]
    pub fn rope_positions(&self, extent: Extent) -> usize {
        let trained = self.plan.geometry().trained as usize;
        let extended = |extension: Extension, block| extension.positions(block, extent.tokens, trained);
        let positions = self.pruned(extent).map(|(layer, _)| {
            let stages = 0..layer.stages.len();
            let scan = stages.map(|stage| {
                match layer.scan_distance(layer.stages[stage].rope, Branch::Left, layer.chunks(stage, extent.tokens)) {
                    ScanDistance::None => 0,
                    ScanDistance::Extended(extension) => extended(extension, layer.stages[stage].query_block),
                    ScanDistance::Constant(position) | ScanDistance::Indexed(position) => position + 1,
                }
            });
            let scan = scan.max().unwrap_or(0);
            let attend = match layer.attend_rope {
                AttendRope::Streaming => layer.budget() + layer.query_block,
                AttendRope::Infllm => layer.window + layer.query_block,
                AttendRope::None => 0,
                AttendRope::DynamicExtend => {
                    let packed = layer.budget() + layer.query_block;
                    packed.max(extended(Extension::DynamicExtend, layer.query_block))
                }
                AttendRope::SelfExtend => {
                    let window = layer.window + layer.query_block;
                    window.max(extended(Extension::SelfExtend, layer.query_block))
                }
            };
            // A decoding step finds angles by turning others by so many positions.
            let onward = if layer.attend_rope == AttendRope::None { 0 } else { MOST_TEAMS + 1 };
            scan.max(attend).max(onward)
        });
        positions.max().unwrap_or(0)
    }

    /// Buffers that all layers share, for steps up to `extent`.
    #[must_use]
    pub fn workspace(&self, extent: Extent) -> Vec<Storage> {
        let mut storage = Vec::new();
        let mut push = |buffer, element, count, zeroed| {
            if count > 0 {
                storage.push(Storage { buffer, element, count, zeroed });
            }
        };
        let scores = self.pruned(extent).flat_map(|(layer, rows)| {
            let rankings = self.shape.rankings(layer.ranking);
            layer.stages.iter().map(move |stage| rows.div_ceil(stage.query_block) * rankings)
        });
        push(Buffer::Scores, Element::U32, scores.max().unwrap_or(0) * self.score_stride(extent), true);
        let rows = self.pruned(extent).flat_map(|(layer, rows)| {
            let extent = Extent { rows, ..extent };
            layer.stages.iter().map(move |stage| row_storage(self.shape, layer, stage, extent))
        });
        let [row_scores, paths] =
            rows.fold([0, 0], |[scores, paths], stage| [scores.max(stage[0]), paths.max(stage[1])]);
        push(Buffer::RowScores, Element::F32, row_scores, false);
        push(Buffer::Paths, Element::I32, paths, false);
        let stages = self.pruned(extent).map(|(layer, _)| layer.stages.len()).max().unwrap_or(0);
        for stage in 1..stages {
            let lists = self.pruned(extent).filter(|(layer, _)| layer.stages.len() > stage).map(|(layer, rows)| {
                rows.div_ceil(layer.stages[stage - 1].query_block)
                    * self.shape.rankings(layer.ranking)
                    * (layer.stages[stage].keep_chunks.unwrap_or(0) + 1)
            });
            push(Buffer::Lists { stage }, Element::I32, lists.max().unwrap_or(0), false);
        }
        let counts = self
            .pruned(extent)
            .filter(|(layer, _)| !layer.stages.is_empty())
            .map(|(layer, rows)| (self.lists(layer, rows), layer.keep_blocks));
        let (blocks, rows) =
            counts.fold((0, 0), |(blocks, rows), (count, keep)| (blocks.max(count * keep), rows.max(count)));
        push(Buffer::Blocks, Element::I32, blocks, false);
        push(Buffer::Counts, Element::I32, rows, false);
        let splits = self.plan.kinds().iter().map(|kind| match kind {
            LayerPlan::Pruned(layer) => {
                let alone = self.chosen(AttendRow::new(self.shape, layer)).splits();
                let appending = AttendRow::appending(self.shape, layer);
                appending.map_or(alone, |attend| alone.max(self.chosen(attend).splits()))
            }
            LayerPlan::Dense => match DenseRow::new(self.shape) {
                Some(dense) => self.chosen(dense).splits(),
                None => SplitDense::new(self.shape).splits(),
            },
        });
        let splits = splits.max().unwrap_or(0);
        let partials = self.shape.query_heads() * splits;
        push(Buffer::Partials, Element::F32, partials * self.shape.head_dim(), false);
        push(Buffer::PartialSums, Element::F32, partials * 2, false);
        push(Buffer::Arrivals, Element::U32, self.shape.query_heads(), true);
        let dense = self.dense_paths.iter().zip(self.plan.kinds()).filter(|(_, kind)| !kind.rotated_cache());
        let dense = dense.map(|(path, _)| path.tokens).max().unwrap_or(0).min(extent.tokens);
        for Storage { buffer, element, count, zeroed } in Gather::new(self.shape).storage(dense) {
            push(buffer, element, count, zeroed);
        }
        storage
    }

    /// Buffers of which `layer` has its own, kept from one step to the next, for steps up to `extent`.
    #[must_use]
    pub fn layer_state(&self, layer: usize, extent: Extent) -> Vec<Storage> {
        let mut storage = self.decoding_state(layer);
        storage.extend(self.held_scores(layer, extent));
        storage.extend(self.summaries(layer).into_iter().map(|summary| {
            let (buffer, element, count) = summary.storage(extent.tokens);
            Storage { buffer, element, count, zeroed: false }
        }));
        storage
    }

    /// What decoding keeps of the lists of `layer`.
    fn decoding_state(&self, layer: usize) -> Vec<Storage> {
        let LayerPlan::Pruned(layer) = self.plan.decode(layer) else { return Vec::new() };
        if layer.stages.is_empty() {
            return Vec::new();
        }
        let lists = self.lists(layer, 1);
        let state = |buffer, count| Storage { buffer, element: Element::I32, count: lists * count, zeroed: true };
        let mut storage: Vec<_> = (layer.stages[1..].iter())
            .map(|stage| state(Buffer::CachedLists { stage: stage.index }, stage.keep_chunks.unwrap_or(0) + 1))
            .collect();
        storage.push(state(Buffer::CachedBlocks, layer.keep_blocks));
        storage.push(state(Buffer::CachedCount, 1));
        storage
    }

    /// Launches of `layer`'s attention in a prefill call of `rows` rows, the step's `t_max` as given. Only grids
    /// depend on these two: a list for more rows or a larger `t_max` computes the same.
    #[must_use]
    pub fn prefill(&self, layer: usize, extent: Extent, rows: usize, t_max: usize) -> Vec<Launch> {
        let mut launches = self.append(layer, rows);
        let (kind, densely) = (self.plan.prefill(layer), self.begins_densely(layer, t_max));
        let LayerPlan::Pruned(layer) = kind else {
            let (attend, grid) = self.attend(kind, rows);
            launches.push(self.launch(&attend, grid, dense_arguments()));
            return launches;
        };
        if densely {
            launches.extend(self.begin_densely(kind.rotated_cache(), rows, t_max));
            return launches;
        }
        for stage in 0..layer.stages.len() {
            let parents = |stage| Buffer::Lists { stage };
            for score in Score::prefill(self.shape, layer, stage) {
                let score = self.chosen(score);
                let grid = score.grid(rows, layer.chunks(stage, t_max));
                launches.push(self.score(score, grid, parents, layer.chunks(stage, extent.tokens), extent));
            }
            let blocks = rows.div_ceil(layer.stages[stage].query_block);
            launches.push(self.select(layer, stage, blocks, parents, [Buffer::Blocks, Buffer::Counts], extent));
        }
        let (attend, grid) = self.attend(kind, rows);
        let arguments = attend_arguments(layer, [Buffer::Blocks, Buffer::Counts], &[Buffer::Out]);
        launches.push(self.launch(&attend, grid, arguments));
        launches
    }

    /// Launches of a prefill step that attends to every key, and of what brings those together unless the cache has them
    /// `rotated`.
    fn begin_densely(&self, rotated: bool, rows: usize, t_max: usize) -> Vec<Launch> {
        let (attend, grid) = self.attend(&LayerPlan::Dense, rows);
        if rotated {
            return vec![self.launch(&attend, grid, dense_arguments())];
        }
        let [keys, values, pages] = Gather::RESULTS;
        let inputs = [Buffer::Step, Buffer::Qkv, Buffer::Keys, Buffer::Values, Buffer::PageTable, Buffer::Frequencies];
        let gathered = inputs.into_iter().chain(Gather::RESULTS).map(Value::Buffer).collect();
        let arguments = [Buffer::Step, Buffer::Qkv, keys, values, pages, Buffer::Out].map(Value::Buffer).to_vec();
        let gather = Unit::Gather(Gather::new(self.shape));
        vec![self.launch(&gather, [t_max as u32, 1, 1], gathered), self.launch(&attend, grid, arguments)]
    }

    /// Launches of `layer`'s attention in a decoding step that renews what `renewal` says. Nothing in the list depends on
    /// the step.
    #[must_use]
    pub fn decode(&self, layer: usize, extent: Extent, renewal: Renewal) -> Vec<Launch> {
        let outputs = [Buffer::Partials, Buffer::PartialSums, Buffer::Arrivals, Buffer::Out];
        let last = [Buffer::CachedBlocks, Buffer::CachedCount];
        if renewal == Renewal::default()
            && let LayerPlan::Pruned(pruned) = self.plan.decode(layer)
            && let Some(attend) = self.appending(layer)
        {
            let attend = self.chosen(attend);
            let grid = attend.grid();
            return vec![self.launch(&Unit::AttendRow(attend), grid, attend_arguments(pruned, last, &outputs))];
        }
        let (mut launches, kind) = (self.append(layer, 1), self.plan.decode(layer));
        match kind {
            LayerPlan::Dense => launches.extend(self.dense_row(outputs)),
            LayerPlan::Pruned(pruned) => {
                launches.extend(self.renew(layer, extent, renewal, last));
                let arguments = attend_arguments(pruned, last, &outputs);
                let attend = self.chosen(AttendRow::new(self.shape, pruned));
                let grid = attend.grid();
                launches.push(self.launch(&Unit::AttendRow(attend), grid, arguments));
            }
        }
        launches
    }

    /// The attention of `layer` that puts a decoding step into the cache itself, unless what stands for a chunk beside
    /// the cache, in either phase, has to be told of every key.
    fn appending(&self, layer: usize) -> Option<AttendRow> {
        let LayerPlan::Pruned(pruned) = self.plan.decode(layer) else { return None };
        self.summaries(layer).is_empty().then(|| AttendRow::appending(self.shape, pruned)).flatten()
    }

    /// Launches of one query over every key.
    fn dense_row(&self, outputs: [Buffer; 4]) -> Vec<Launch> {
        let mut arguments = dense_arguments();
        arguments.pop();
        if let Some(dense) = DenseRow::new(self.shape).map(|dense| self.chosen(dense)) {
            arguments.extend(outputs.map(Value::Buffer));
            let grid = dense.grid();
            return vec![self.launch(&Unit::DenseRow(dense), grid, arguments)];
        }
        let dense = SplitDense::new(self.shape);
        let (grid, splits) = (dense.grid(), dense.splits());
        arguments.extend([Buffer::Partials, Buffer::PartialSums].map(Value::Buffer));
        let mut merged = [Buffer::Step, Buffer::Partials, Buffer::PartialSums, Buffer::Out].map(Value::Buffer).to_vec();
        merged.push(Value::I32(splits as i32));
        vec![
            self.launch(&Unit::SplitDense(dense), grid, arguments),
            self.launch(&Unit::Merge(Merge::new(self.shape)), [self.shape.geometry.query_heads, 1, 1], merged),
        ]
    }

    /// Final block lists of a call of `rows` rows: one for each query block and ranking.
    #[must_use]
    pub fn lists(&self, layer: &PrunedLayer, rows: usize) -> usize {
        rows.div_ceil(layer.query_block) * self.shape.rankings(layer.ranking)
    }

    /// What layers do that are not dense, with the rows of the longest step in which they do it: the extent's where the
    /// prompt is read so, one where only tokens are generated so.
    fn pruned(&self, extent: Extent) -> impl Iterator<Item = (&PrunedLayer, usize)> {
        self.plan.kinds().iter().enumerate().filter_map(move |(kind, layer)| match layer {
            LayerPlan::Dense => None,
            LayerPlan::Pruned(layer) => {
                let prefill = (0..self.plan.layers()).any(|layer| self.plan.prefill_kind(layer) == kind);
                Some((layer, if prefill { extent.rows } else { 1 }))
            }
        })
    }

    /// Entries of a row of [`Buffer::Scores`].
    pub(super) fn score_stride(&self, extent: Extent) -> usize {
        let chunks = self
            .pruned(extent)
            .flat_map(|(layer, _)| (0..layer.stages.len()).map(|stage| layer.chunks(stage, extent.tokens)));
        chunks.max().unwrap_or(0)
    }

    /// Launches that put a step into the cache, and what stands for the chunks that it completes beside it.
    fn append(&self, layer: usize, rows: usize) -> Vec<Launch> {
        let append = Append::new(self.shape, self.plan.rotated_cache(layer));
        let mut buffers = vec![Buffer::Step, Buffer::Qkv, Buffer::Keys, Buffer::Values, Buffer::PageTable];
        if append.rotated {
            buffers.push(Buffer::Frequencies);
        }
        let arguments = buffers.into_iter().map(Value::Buffer).collect();
        let mut launches = vec![self.launch(&Unit::Append(append), [rows as u32, 1, 1], arguments)];
        launches.extend(
            self.summaries(layer)
                .into_iter()
                .map(|summary| self.launch(&Unit::Summarise(summary), summary.grid(rows), values(summary.operands()))),
        );
        launches
    }

    /// What stands for the chunks of `layer` beside its cache: one a size of chunks, whichever stages of either phase
    /// read it.
    fn summaries(&self, layer: usize) -> Vec<Summarise> {
        let mut summaries: Vec<Summarise> = Vec::new();
        for kind in [self.plan.prefill(layer), self.plan.decode(layer)] {
            let LayerPlan::Pruned(pruned) = kind else { continue };
            for summary in pruned.stages.iter().filter_map(|stage| Summarise::new(self.shape, pruned, stage)) {
                if !summaries.contains(&summary) {
                    summaries.push(summary);
                }
            }
        }
        summaries
    }

    /// A launch of one of the kernels that score a stage of which `chunks` may enter.
    pub(super) fn score(
        &self,
        score: Score,
        grid: [u32; 3],
        parents: impl Fn(usize) -> Buffer,
        chunks: usize,
        extent: Extent,
    ) -> Launch {
        let operands = score.operands(parents);
        let strides = strides(&operands).into_iter().map(|stride| match stride {
            Stride::Rows => chunks,
            Stride::Scores => self.score_stride(extent),
        });
        let strides: Vec<_> = strides.map(|stride| Value::I32(stride as i32)).collect();
        let arguments = values(operands).into_iter().chain(strides).collect();
        self.launch(&Unit::Score(score), grid, arguments)
    }

    pub(super) fn select(
        &self,
        layer: &PrunedLayer,
        stage: usize,
        blocks: usize,
        parents: impl Fn(usize) -> Buffer,
        last: [Buffer; 2],
        extent: Extent,
    ) -> Launch {
        let mut buffers = vec![Buffer::Step];
        if stage > 0 {
            buffers.push(parents(stage));
        }
        buffers.push(Buffer::Scores);
        if stage + 1 == layer.stages.len() {
            buffers.extend(last);
        } else {
            buffers.push(parents(stage + 1));
        }
        let mut arguments: Vec<_> = buffers.into_iter().map(Value::Buffer).collect();
        arguments.push(Value::I32(self.score_stride(extent) as i32));
        let select = Select::new(self.shape, layer, stage);
        let grid = select.grid(blocks);
        self.launch(&Unit::Select(select), grid, arguments)
    }

    /// A kernel with what is chosen for it.
    pub(super) fn chosen<T: Tune>(&self, kernel: T) -> T {
        kernel.chosen(self.shape, &self.tunings)
    }

    /// The kernel that attends in prefill, and its blocks of threads for `rows` rows.
    fn attend(&self, kind: &LayerPlan, rows: usize) -> (Unit, [u32; 3]) {
        let unit = self.chosen(attend_of(self.shape, kind, self.instructions));
        let grid = match &unit {
            Unit::AttendGroups(attend) => attend.grid(rows),
            Unit::AttendTiles(attend) => attend.grid(rows),
            Unit::Attend(attend) => attend.grid(rows),
            other => unreachable!("{other:?} does not attend in prefill"),
        };
        (unit, grid)
    }

    fn launch(&self, unit: &Unit, grid: [u32; 3], arguments: Vec<Value>) -> Launch {
        Launch { kernel: self.units.name(unit), grid, arguments }
    }
}

fn values(operands: Vec<Operand>) -> Vec<Value> {
    operands.into_iter().map(|operand| Value::Buffer(operand.buffer)).collect()
}

fn dense_arguments() -> Vec<Value> {
    [Buffer::Step, Buffer::Qkv, Buffer::Keys, Buffer::Values, Buffer::PageTable, Buffer::Out]
        .map(Value::Buffer)
        .to_vec()
}

fn attend_arguments(layer: &PrunedLayer, lists: [Buffer; 2], outputs: &[Buffer]) -> Vec<Value> {
    let mut buffers = vec![Buffer::Step, Buffer::Qkv, Buffer::Keys, Buffer::Values, Buffer::PageTable];
    if layer.attend_rope != AttendRope::None {
        buffers.push(Buffer::RopeTable);
    }
    if !layer.stages.is_empty() {
        buffers.extend(lists);
    }
    buffers.extend(outputs);
    buffers.into_iter().map(Value::Buffer).collect()
}
