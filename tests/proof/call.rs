//! One call of one layer, checked stage by stage.
//!
//! Scores are held against the replayed descents, the selection against a sort of the kernel's own scores, bit for bit,
//! and the output against the attention over the kernel's own lists. So a near tie excuses what it decides and nothing
//! else, and no call is left out.

use std::cmp::Reverse;
use std::ops::Range;

use half::bf16;
use ihip_dsl::emit::{Activation, Buffer, Family, Launch, Value};
use ihip_dsl::reference::{self, BlockList, Problem, Tensors, scan, select};
use ihip_dsl::{Geometry, KvType, LayerPruning};
use ihip_tests::support::attention::{Attention, decode};
use ihip_tests::support::tolerance;

use super::draw::Drawn;
use super::replay::{Scan, dot, pairs};
use super::table::{Place, Tally};
use crate::families::Data;

/// Chunks that enter a stage, for each of its query blocks and rankings.
type Lists = Vec<Vec<usize>>;

/// A layer with a cache, and what its decoding steps keep.
pub(super) struct Checked<'a> {
    pub(super) drawn: &'a Drawn,
    pub(super) attention: &'a mut Attention,
    pub(super) tally: &'a mut Tally,
    /// What entered each stage when the stage before last ran while decoding.
    inputs: Vec<Lists>,
    lists: Vec<BlockList>,
}

/// What a call is over.
struct Call {
    first: usize,
    rows: usize,
    t_max: usize,
    decode: bool,
}

/// Queries, keys and values as kernels find them: those that are cached rotated are so here, and nothing turns them.
#[derive(Clone)]
struct Inputs {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    frequencies: Vec<f64>,
}

impl<'a> Checked<'a> {
    pub(super) fn new(drawn: &'a Drawn, attention: &'a mut Attention, tally: &'a mut Tally) -> Self {
        let lists = vec![BlockList::default(); attention.rankings()];
        Self { drawn, attention, tally, inputs: Vec::new(), lists }
    }

    /// A prefill call over all rows of `data`, whose grid is laid out for `spare` keys more than there are.
    pub(super) fn prefill(&mut self, data: &Data, spare: usize) -> Result<(), String> {
        let qkv = data.cache(&self.drawn.layer, self.attention);
        let call = Call { first: data.first, rows: data.rows, t_max: data.first + data.rows + spare, decode: false };
        let launches = self.attention.begin_prefill(call.first, call.t_max, &qkv);
        let rest = self.appended(data, &call, &launches)?;
        let inputs = self.inputs(&call);
        let tensors = inputs.tensors(self.drawn, &call);
        let blocks = call.rows.div_ceil(self.query_block(0));
        let entries = vec![scan::first_chunks(self.pruning(), call.t_max); blocks * self.attention.rankings()];
        let lists = self.stages(&tensors, &call, 0, entries, rest)?;
        self.attended(&inputs, &call, &lists, self.attentions(rest))
    }

    /// Decoding steps over the rows of `data`, which renew their masks from the stages that `restarts` names in turn.
    pub(super) fn decode(&mut self, data: &Data, spare: usize, restarts: &[Option<usize>]) -> Result<(), String> {
        let qkv = data.cache(&self.drawn.layer, self.attention);
        let row = qkv.len() / data.rows;
        for (step, (qkv, restart)) in qkv.chunks(row).zip(restarts).enumerate() {
            let position = data.first + step;
            let call = Call { first: position, rows: 1, t_max: position + 1 + spare, decode: true };
            let launches = self.attention.begin_decode(position, call.t_max, *restart, qkv);
            // A step that renews nothing may leave the cache to its attention.
            if self.attention.family(&launches[0]) != Family::Append {
                self.attention.launch(&launches);
            }
            let rest = self.appended(data, &call, &launches)?;
            let inputs = self.inputs(&call);
            if let Some(restart) = *restart {
                let tensors = inputs.tensors(self.drawn, &call);
                let entries = match restart {
                    0 => vec![scan::first_chunks(self.pruning(), call.t_max); self.attention.rankings()],
                    _ => self.inputs[restart].clone(),
                };
                self.inputs.truncate(restart);
                self.lists = self.stages(&tensors, &call, restart, entries, rest)?;
            }
            let lists = self.lists.clone();
            self.attended(&inputs, &call, &lists, self.attentions(rest))
                .map_err(|fault| format!("step {step}, renewed from {restart:?}: {fault}"))?;
        }
        Ok(())
    }

    /// The launches at the end of a list that attend.
    fn attentions<'l>(&self, launches: &'l [Launch]) -> &'l [Launch] {
        let attends = |launch| matches!(self.attention.family(launch), Family::Attend | Family::Dense | Family::Merge);
        let others = launches.iter().take_while(|&launch| !attends(launch)).count();
        &launches[others..]
    }

    fn pruning(&self) -> &'a LayerPruning {
        &self.drawn.layer.pruning
    }

    fn query_block(&self, stage: usize) -> usize {
        let stage = self.pruning().stages.get(stage);
        stage.map_or(self.pruning().query_block, |stage| stage.query_block) as usize
    }

    /// Counts a launch that was off by `error` of the `tolerance` that it might be.
    fn count(&mut self, launch: &Launch, call: &Call, error: f64, tolerance: f64) {
        let kernel = self.attention.kernel(launch);
        if self.drawn.counts(&kernel.name) {
            self.tally.add(Place::new(kernel, self.drawn, call.decode), error, tolerance);
        }
    }

    /// Lets the call's keys and values into the cache, and compares it with `data`; returns the launches after that.
    fn appended<'l>(&mut self, data: &Data, call: &Call, launches: &'l [Launch]) -> Result<&'l [Launch], String> {
        let rest = self.attention.launch_appends(launches);
        let end = call.first + call.rows;
        let (geometry, key) = (self.drawn.geometry(), self.drawn.layer.key_row());
        let values = cached(self.attention, Buffer::Values, &geometry, end);
        if let Some(at) = different(&values, &held(&geometry, &data.values[..end * key])) {
            return Err(format!("value element {at} is cached as something else"));
        }
        let keys = cached(self.attention, Buffer::Keys, &geometry, end);
        let (mut error, head_dim) = (0.0_f64, geometry.head_dim as usize);
        let rotated = self.pruning().rope.rotated_cache();
        let bound = tolerance::cached(geometry.kv_type);
        for (number, (got, given)) in keys.chunks(head_dim).zip(data.keys.chunks(head_dim)).enumerate() {
            if !rotated {
                if let Some(at) = different(got, &held(&geometry, given)) {
                    return Err(format!("key element {at} of head {number} is cached as something else"));
                }
                continue;
            }
            let given = wide(given);
            let sizes = pairs(&given);
            let shared = geometry.kv_type.group(head_dim);
            let position = number / geometry.kv_heads as usize;
            let expected = reference::rope::rotate(&given, position, &self.drawn.frequencies());
            for (element, (&got, &wanted)) in got.iter().zip(&expected).enumerate() {
                let size = shared.map_or(sizes[element % sizes.len()], |group| {
                    let first = element / group * group;
                    expected[first..first + group].iter().fold(0.0, |a: f64, b| a.max(b.abs()))
                });
                let off = (f64::from(got) - wanted).abs();
                if size.is_finite() && off > 0.0 {
                    let slack = tolerance::least_held(geometry.kv_type);
                    if off > bound * size + slack {
                        return Err(format!("key element {element} of head {number}: {got} for {wanted}"));
                    }
                    error = error.max((off - slack).max(0.0) / size);
                }
            }
        }
        for launch in launches.iter().take(launches.len() - rest.len()) {
            self.count(launch, call, error, if rotated { bound } else { 0.0 });
        }
        Ok(rest)
    }

    /// What the call reads, from where kernels read it.
    fn inputs(&mut self, call: &Call) -> Inputs {
        let geometry = self.drawn.geometry();
        let end = call.first + call.rows;
        let (query, row) =
            (self.drawn.layer.query_row(), self.drawn.layer.query_row() + 2 * self.drawn.layer.key_row());
        let qkv = decode(self.drawn.activation.element(), &self.attention.read(Buffer::Qkv));
        let rows = qkv.len() / row;
        let queries = qkv.chunks(row).skip(rows - call.rows).flat_map(|row| &row[..query]).copied().collect();
        let keys = cached(self.attention, Buffer::Keys, &geometry, end);
        let values = cached(self.attention, Buffer::Values, &geometry, end);
        let mut frequencies = self.drawn.frequencies();
        if self.pruning().rope.rotated_cache() {
            frequencies.fill(0.0);
        }
        Inputs { queries, keys, values, frequencies }
    }

    /// Runs the stages from number `first` on, which `entries` enter, and returns the lists that they leave.
    fn stages(
        &mut self,
        tensors: &Tensors<'_>,
        call: &Call,
        first: usize,
        mut entries: Lists,
        mut rest: &[Launch],
    ) -> Result<Vec<BlockList>, String> {
        let pruning = self.pruning();
        let rankings = self.attention.rankings();
        for (number, stage) in pruning.stages.iter().enumerate().skip(first) {
            let scans = rest.iter().take_while(|launch| self.attention.family(launch) == Family::Scan).count();
            let scores = self.scored(tensors, call, number, &entries, &rest[..scans])?;
            self.attention.launch(&rest[scans..=scans]);
            self.count(&rest[scans], call, 0.0, 0.0);
            rest = &rest[scans + 1..];
            if !self.attention.scores_are_zero() {
                return Err(format!("stage {number} leaves scores behind"));
            }
            let next = pruning.stages.get(number + 1);
            let keep = next.map_or(pruning.keep, |next| next.keep.expect("a later stage")) / stage.chunk;
            let kept: Lists =
                entries.iter().zip(&scores).map(|(chunks, scores)| best(chunks, scores, keep as usize)).collect();
            if call.decode {
                self.inputs.push(entries);
            }
            match next {
                None => return self.last_lists(call, &kept, keep as usize),
                Some(next) => {
                    self.kept_lists(call, number + 1, &kept, keep as usize)?;
                    let (parents, children) = (kept.len() / rankings, call.rows.div_ceil(next.query_block as usize));
                    let ratio = (stage.query_block / next.query_block) as usize;
                    let split = |entry: usize| {
                        let parent = select::parent(entry / rankings, children, parents, ratio);
                        let kept = &kept[parent * rankings + entry % rankings];
                        select::split(kept, stage.chunk as usize, next.chunk as usize)
                    };
                    entries = (0..children * rankings).map(split).collect();
                }
            }
        }
        Ok(vec![BlockList::default(); call.rows.div_ceil(self.query_block(0)) * rankings])
    }

    /// Runs the scans of a stage twice, to compare them with what their descents came upon; returns their scores.
    fn scored(
        &mut self,
        tensors: &Tensors<'_>,
        call: &Call,
        number: usize,
        entries: &[Vec<usize>],
        scans: &[Launch],
    ) -> Result<Vec<Vec<u32>>, String> {
        let rankings = self.attention.rankings();
        let (blocks, chunks) = (entries.len() / rankings, entries.first().map_or(0, Vec::len));
        let Some(Value::I32(stride)) = scans.last().and_then(|launch| launch.arguments.last()) else {
            return Err(format!("stage {number} has no stride: {scans:?}"));
        };
        let scores = |attention: &mut Attention| -> Vec<Vec<u32>> {
            let scores = attention.read_i32(Buffer::Scores);
            let rows = scores.chunks(*stride as usize).take(entries.len());
            rows.map(|row| row[..chunks].iter().map(|bits| bits.cast_unsigned()).collect()).collect()
        };
        self.attention.launch(scans);
        let of_the_product = scores(self.attention);
        self.attention.zero_scores();
        let descents = self.attention.launch_recorded(scans, blocks, chunks);
        let scores = scores(self.attention);
        if scores != of_the_product {
            return Err(format!("stage {number} scores otherwise where its descents are recorded"));
        }
        let heads = self.drawn.layer.heads.0 as usize;
        let mut worst = (0.0_f64, 0.0_f64);
        for (entry, (list, scores)) in entries.iter().zip(&scores).enumerate() {
            let (block, ranking) = (entry / rankings, entry % rankings);
            let query_block = self.query_block(number);
            let scan = Scan {
                tensors,
                kv_type: self.drawn.layer.kv_type,
                stage: number,
                exact: self.drawn.exact,
                rows: block * query_block..((block + 1) * query_block).min(call.rows),
                chunks: list,
            };
            let ends = &descents[block * heads * chunks..][..heads * chunks];
            let place = |fault: String| format!("stage {number}, query block {block}, ranking {ranking}, {fault}");
            let expected = scan.scores(tensors.heads(ranking), ends).map_err(place)?;
            for (chunk, (expected, &bits)) in expected.iter().zip(scores).enumerate() {
                let got = score(bits);
                let place = |what: String| place(format!("chunk {chunk} at {}: {what}", list[chunk]));
                match expected {
                    None if got.is_some() => return Err(place(format!("{got:?}, and nobody sees it"))),
                    Some(expected) if expected.is_finite() => {
                        let got = f64::from(got.unwrap_or(scan::NEVER_SCORED));
                        let floor = f64::from(scan::NEVER_SCORED);
                        let off = (got - (expected.value as f32 as f64).max(floor)).abs();
                        // Half a step of the f32 that a score is.
                        let bound =
                            expected.bound + if self.drawn.exact { 0.0 } else { got.abs() * f64::from(f32::EPSILON) };
                        if off.is_nan() || off > bound {
                            return Err(place(format!("{got}, and it is {} ± {bound:.1e}", expected.value)));
                        }
                        if expected.size > 0.0 {
                            let (off, bound) = (off / expected.size, bound / expected.size);
                            if off * worst.1 > bound * worst.0 || worst.1 == 0.0 {
                                worst = (off, bound);
                            }
                        }
                    }
                    None | Some(_) => {}
                }
            }
        }
        for launch in scans {
            self.count(launch, call, worst.0, worst.1);
        }
        Ok(scores)
    }

    /// What a cut that is not the last one left must be `kept`.
    fn kept_lists(&mut self, call: &Call, stage: usize, kept: &Lists, keep: usize) -> Result<(), String> {
        let buffer = if call.decode { Buffer::CachedLists { stage } } else { Buffer::Lists { stage } };
        let lists = self.attention.read_i32(buffer);
        for (entry, (kept, list)) in kept.iter().zip(lists.chunks(keep + 1)).enumerate() {
            let mut expected = padded(kept, keep);
            expected.push(kept.len() as i32);
            if expected != list {
                return Err(format!("list {entry} into stage {stage} is {list:?}, and its scores say {expected:?}"));
            }
        }
        Ok(())
    }

    /// What the last cut left must be `kept`.
    fn last_lists(&mut self, call: &Call, kept: &Lists, keep: usize) -> Result<Vec<BlockList>, String> {
        let rankings = self.attention.rankings();
        let [blocks, counts] =
            if call.decode { [Buffer::CachedBlocks, Buffer::CachedCount] } else { [Buffer::Blocks, Buffer::Counts] };
        let (blocks, counts) = (self.attention.read_i32(blocks), self.attention.read_i32(counts));
        let query_block = self.query_block(self.pruning().stages.len() - 1);
        let list = |(entry, kept): (usize, &Vec<usize>)| {
            let first = call.first + entry / rankings * query_block;
            let expected = select::final_list(kept, first, query_block);
            let (list, count) = (&blocks[entry * keep..][..keep], counts[entry]);
            if (padded(kept, keep).as_slice(), expected.count as i32) != (list, count) {
                return Err(format!("list {entry} is {count} of {list:?}, and its scores say {expected:?}"));
            }
            Ok(expected)
        };
        kept.iter().enumerate().map(list).collect()
    }

    /// Attends over `lists`, and compares the output.
    fn attended(
        &mut self,
        inputs: &Inputs,
        call: &Call,
        lists: &[BlockList],
        launches: &[Launch],
    ) -> Result<(), String> {
        self.attention.launch(launches);
        let out = self.attention.out(call.rows);
        let tensors = inputs.tensors(self.drawn, call);
        let expected = reference::attend::pruned(&tensors, lists);
        // How large values are on average, beside what they average to.
        let sizes = Inputs { values: inputs.values.iter().map(|value| value.abs()).collect(), ..inputs.clone() };
        let sizes = reference::attend::pruned(&sizes.tensors(self.drawn, call), lists);
        let (heads, head_dim) = (tensors.query_heads(), self.drawn.layer.heads.2 as usize);
        let rankings = self.attention.rankings();
        let query_block = self.pruning().query_block as usize;
        let (kv_type, rotated) = (self.drawn.layer.kv_type, self.pruning().rope.rotated_cache());
        let mut worst = (0.0_f64, 0.0_f64);
        for (number, ((out, expected), sizes)) in
            out.chunks(head_dim).zip(expected.chunks(head_dim)).zip(sizes.chunks(head_dim)).enumerate()
        {
            let (row, head) = (number / heads, number % heads);
            let list = &lists[row / query_block * rankings + head * rankings / heads];
            let keys = self.visible(call.first + row, list);
            let query = pairs(tensors.query(row, head));
            let mut size = 0.0_f64;
            for &position in &keys {
                let product = dot(&query, &pairs(tensors.key(position, tensors.kv_head(head))));
                size = if product.is_finite() { size.max(product) } else { f64::INFINITY };
            }
            if !size.is_finite() {
                continue;
            }
            let elements = 2.0 * query.iter().sum::<f64>();
            let logit = tolerance::logit(kv_type, head_dim, rotated) * size + tolerance::least(kv_type) * elements;
            let share =
                tolerance::average(kv_type, keys.len(), logit, rotated) + tolerance::activation(self.drawn.activation);
            let largest =
                |&key: &usize| tensors.value(key, tensors.kv_head(head)).iter().fold(0.0, |a: f64, b| a.max(b.abs()));
            let values = keys.iter().map(largest).sum::<f64>();
            let smallest = tolerance::least(kv_type) * values + tolerance::flushed(values);
            let even = self.drawn.exact && query.iter().all(|&x| x == 0.0) && !keys.is_empty();
            for (element, ((&got, &expected), &size)) in out.iter().zip(expected).zip(sizes).enumerate() {
                let place = || format!("row {row}, head {head}, element {element} over {} keys", keys.len());
                if even {
                    // All keys weigh the same, and sums of small whole numbers are exact.
                    let sum: f64 = keys.iter().map(|&key| tensors.value(key, tensors.kv_head(head))[element]).sum();
                    // A kernel divides each sum by how many there are, or multiplies it by one over that.
                    let (sum, count) = (sum as f32, keys.len() as f32);
                    let exact = [sum / count, sum * (1.0 / count)].map(|x| rounded(self.drawn.activation, x));
                    if !exact.contains(&got) {
                        return Err(format!("{}: {got}, and {sum} of {count} is {exact:?}", place()));
                    }
                }
                let off = f64::from((got - expected).abs());
                let bound = share * f64::from(size) + smallest;
                if off.is_nan() || off > bound {
                    return Err(format!("{}: {got}, and it is {expected} ± {bound:.1e}", place()));
                }
                if size > 0.0 {
                    let (off, bound) = (off / f64::from(size), bound / f64::from(size));
                    if off * worst.1 > bound * worst.0 || worst.1 == 0.0 {
                        worst = (off, bound);
                    }
                }
            }
        }
        for launch in launches {
            self.count(launch, call, worst.0, worst.1);
        }
        Ok(())
    }

    /// Positions of the keys that the query at `position` attends to.
    fn visible(&self, position: usize, list: &BlockList) -> Vec<usize> {
        let pruning = self.pruning();
        let (sink, window) = (pruning.sink as usize, pruning.window as usize);
        let block = pruning.stages.last().map_or(1, |last| last.chunk as usize);
        let selected = list.blocks[..list.count].iter().flat_map(|&start| start..start + block);
        let far = (0..sink).chain(selected).filter(|&key| key + window <= position);
        far.chain((position + 1).saturating_sub(window)..=position).collect()
    }
}

impl Inputs {
    fn tensors<'a>(&'a self, drawn: &'a Drawn, call: &Call) -> Tensors<'a> {
        let geometry = drawn.geometry();
        Tensors::new(&Problem {
            pruning: &drawn.layer.pruning,
            query_heads: geometry.query_heads as usize,
            kv_heads: geometry.kv_heads as usize,
            head_dim: geometry.head_dim as usize,
            // What was read from a cache is in its type.
            kv_type: KvType::F32,
            query_scale: geometry.query_scale,
            frequencies: &self.frequencies,
            queries: &self.queries,
            keys: &self.keys,
            values: &self.values,
            first_position: call.first,
            t_max: call.t_max,
            trained: geometry.trained as usize,
        })
    }
}

/// The `keep` best of `chunks` by the kernel's own scores, ascending: the lower position first in a tie.
fn best(chunks: &[usize], scores: &[u32], keep: usize) -> Vec<usize> {
    let never = !(scan::NEVER_SCORED.to_bits());
    let mut ranking: Vec<(Reverse<u32>, usize)> =
        scores.iter().zip(chunks).map(|(&score, &chunk)| (Reverse(score.max(never)), chunk)).collect();
    ranking.sort_unstable();
    let mut kept: Vec<usize> = ranking.into_iter().take(keep).map(|(_, chunk)| chunk).collect();
    kept.sort_unstable();
    kept
}

/// A list with −1 in what is left of its `width` entries.
fn padded(list: &[usize], width: usize) -> Vec<i32> {
    let mut padded: Vec<i32> = list.iter().map(|&start| start as i32).collect();
    padded.resize(width, -1);
    padded
}

/// The float behind an ordered integer; `None` where nobody scored.
fn score(bits: u32) -> Option<f32> {
    let float = if bits >> 31 == 1 { bits & 0x7fff_ffff } else { !bits };
    (bits != 0).then(|| f32::from_bits(float))
}

/// What an output of that type makes of a number.
fn rounded(activation: Activation, number: f32) -> f32 {
    match activation {
        Activation::F32 => number,
        Activation::Bf16 => bf16::from_f32(number).to_f32(),
    }
}

/// The first element that is not the same, NaN being the same as NaN.
fn different(a: &[f32], b: &[f32]) -> Option<usize> {
    a.iter().zip(b).position(|(a, b)| a != b && !(a.is_nan() && b.is_nan()))
}

/// What the cache holds of rows.
fn held(geometry: &Geometry, rows: &[f32]) -> Vec<f32> {
    let mut rows = wide(rows);
    rows.chunks_mut(geometry.head_dim as usize).for_each(|row| reference::cache::hold(geometry.kv_type, row));
    rows.into_iter().map(|x| x as f32).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Everything cached before position `end`, `[keys, kv_heads, head_dim]`; pages lie in reverse.
fn cached(attention: &mut Attention, buffer: Buffer, geometry: &Geometry, end: usize) -> Vec<f32> {
    let [kv_heads, head_dim, page] =
        [geometry.kv_heads, geometry.head_dim, geometry.page].map(|number| number as usize);
    let values = geometry.kv_type.decode(&attention.read(buffer), page, head_dim);
    let pages = values.len() / (page * kv_heads * head_dim);
    let head = |position: usize, head: usize| -> Range<usize> {
        let row = ((pages - 1 - position / page) * kv_heads + head) * page + position % page;
        row * head_dim..(row + 1) * head_dim
    };
    let heads = (0..end).flat_map(|position| (0..kv_heads).map(move |kv_head| (position, kv_head)));
    heads.flat_map(|(position, kv_head)| values[head(position, kv_head)].to_vec()).collect()
}
