//! Keys that are brought back to positions the model was trained on: layers with every mode, and positions that f32
//! angles do not reach.

use ihip_dsl::emit::{Activation, Buffer, Extent, Family, Launch};
use ihip_dsl::reference::rope::{Group, Packing, Span, attend_key, scan_key};
use ihip_dsl::{
    AttendRope, ChunkScore, Descent, Halving, KvType, Probe, QueryReduction, Ranking, Representative, ScanRope, Scores,
    Scoring, Stage,
};
use ihip_tests::support::attention::Attention;
use ihip_tests::support::host::host;
use ihip_tests::support::tolerance;

use super::scan::score;
use super::{Data, Layer, ROWS, layer, stage};

/// Every way in which keys move beside every way in which kernels read them. Sequences end below what was trained, or
/// beyond it.
pub fn extended_layers() -> Vec<Layer> {
    use {AttendRope as A, KvType as T, QueryReduction as Q, Representative as R, ScanRope as S, Scores as V};
    use {ChunkScore as C, Descent as D, Probe as P};
    let halving = |probe, chunk_score, descent| R::Halving(Halving { probe, chunk_score, descent });
    let with = |stage, representative, query_reduction, scores, rope| Stage {
        scoring: Scoring { representative, query_reduction, scores },
        rope: Some(rope),
        ..stage
    };
    let trained = |trained, ranking, mut layer: Layer| {
        layer.trained = trained;
        layer.pruning.ranking = ranking;
        layer
    };
    vec![
        trained(
            128,
            Ranking::All,
            layer(
                (4, 2, 32),
                T::F32,
                16,
                (16, 64),
                &[stage(0, 32, 64, 4), stage(128, 16, 64, 2), stage(64, 8, 64, 1)],
                48,
                (S::DynamicExtend, A::DynamicExtend),
            ),
        ),
        // A stage of its own kind between two, query blocks that shrink, chunks that are no powers of two, tiny pages.
        trained(
            200,
            Ranking::All,
            layer(
                (9, 3, 64),
                T::Bf16,
                4,
                (12, 50),
                &[
                    stage(0, 24, 48, 4),
                    with(stage(96, 12, 48, 3), R::default(), Q::Mean, V::Raw, S::ChunkIndexed),
                    with(stage(48, 4, 16, 1), R::default(), Q::Max, V::Raw, S::DynamicExtend),
                ],
                32,
                (S::SelfExtend, A::SelfExtend),
            ),
        ),
        // Groups descend together, each head ranks for itself, then every key.
        trained(
            300,
            Ranking::Each,
            layer(
                (8, 2, 64),
                T::F16,
                16,
                (16, 48),
                &[
                    with(
                        stage(0, 16, 32, 2),
                        halving(P::First, C::Last, D::KvGroup),
                        Q::Mean,
                        V::Raw,
                        S::DynamicExtend,
                    ),
                    with(stage(96, 8, 32, 4), R::Exact, Q::Mean, V::Raw, S::SelfExtend),
                ],
                48,
                (S::Relative, A::DynamicExtend),
            ),
        ),
        // Distributions over what descents found and over keys; blocks longer than what was trained, in turns.
        trained(
            96,
            Ranking::KvGroup,
            layer(
                (4, 2, 32),
                T::F32,
                8,
                (8, 40),
                &[
                    with(
                        stage(0, 16, 128, 1),
                        halving(P::Middle, C::RunningMax, D::KvGroup),
                        Q::Max,
                        V::Soft,
                        S::SelfExtend,
                    ),
                    with(stage(96, 8, 128, 4), R::Exact, Q::Max, V::Soft, S::DynamicExtend),
                ],
                48,
                (S::None, A::DynamicExtend),
            ),
        ),
        // Distributions over what each head's descent found last; bounds cannot move, and do not.
        trained(
            160,
            Ranking::All,
            layer(
                (6, 3, 32),
                T::F16,
                16,
                (8, 40),
                &[
                    with(stage(0, 16, 32, 2), R::MinMax, Q::Max, V::Raw, S::ChunkIndexed),
                    with(stage(96, 8, 32, 4), halving(P::First, C::Last, D::Each), Q::Mean, V::Soft, S::SelfExtend),
                ],
                48,
                (S::SelfExtend, A::Streaming),
            ),
        ),
        // Heads of 128; nothing was trained far enough to move.
        trained(
            8192,
            Ranking::All,
            layer(
                (2, 1, 128),
                T::Bf16,
                16,
                (16, 40),
                &[stage(0, 16, 16, 1), stage(64, 4, 16, 4)],
                32,
                (S::SelfExtend, A::DynamicExtend),
            ),
        ),
        // No stages at all: sinks and window.
        trained(64, Ranking::All, layer((6, 2, 64), T::F16, 16, (20, 70), &[], 0, (S::None, A::DynamicExtend))),
        trained(64, Ranking::All, layer((4, 4, 32), T::F32, 16, (20, 70), &[], 0, (S::None, A::SelfExtend))),
    ]
}

/// Beyond these, an f32 holds no angle to better than an eighth of a radian.
const FAR: usize = (1 << 21) + 12_345;
/// Tokens that the cache holds: the sequence repeats them.
const HELD: usize = 257 * 16;
/// Queries of a prefill call.
const QUERIES: usize = 6;
/// Tokens of a chunk: few chunks make a sequence.
const CHUNK: usize = 1 << 16;

/// Cosine and sine of a position's angle.
type Angle = fn(usize, f64) -> (f64, f64);

/// As exact as it gets.
fn exact(position: usize, frequency: f64) -> (f64, f64) {
    let (sin, cos) = (position as f64 * frequency).sin_cos();
    (cos, sin)
}

/// What a table of f32 angles at true positions has.
fn rounded(position: usize, frequency: f64) -> (f64, f64) {
    let (sin, cos) = f64::from(position as f32 * frequency as f32).sin_cos();
    (cos, sin)
}

/// A call at positions from [`FAR`] on.
struct Call {
    layer: Layer,
    data: Data,
    rows: usize,
}

impl Call {
    fn new(layer: Layer, rows: usize) -> Self {
        let data = Data::new(&layer, HELD - rows, rows, 1);
        Self { layer, data, rows }
    }

    /// The call's launches but those that fill the cache, and what they run on.
    fn begin(&self) -> (Attention, Vec<Launch>) {
        let extent = Extent { rows: ROWS, tokens: FAR + ROWS };
        let plan = self.layer.plan();
        let pages = HELD / self.layer.page as usize;
        let mut attention = Attention::repeating(host(), &plan, Activation::F32, extent, pages);
        attention.append(0, &self.data.keys, &self.data.values);
        let row = |queries: &[f32]| [queries, &vec![0.0; 2 * self.layer.key_row()]].concat();
        let qkv: Vec<f32> = self.data.queries.chunks(self.layer.query_row()).flat_map(row).collect();
        let end = FAR + self.rows;
        let mut launches = if self.rows == 1 {
            attention.begin_decode(FAR, end, Some(0), &qkv)
        } else {
            attention.begin_prefill(FAR, end, &qkv)
        };
        launches.retain(|launch| attention.family(launch) != Family::Append);
        (attention, launches)
    }

    fn span(&self) -> Span {
        Span { queries: FAR..FAR + self.rows, trained: self.layer.trained as usize }
    }

    /// `x` turned to a blend of positions.
    fn turned(&self, x: &[f32], positions: &[(f64, usize)], angle: Angle) -> Vec<f64> {
        let half = x.len() / 2;
        let mut turned = vec![0.0; x.len()];
        for (pair, frequency) in self.layer.frequencies().into_iter().enumerate() {
            let (low, high) = (f64::from(x[pair]), f64::from(x[pair + half]));
            for &(share, position) in positions {
                let (cos, sin) = angle(position, frequency);
                turned[pair] += share * (low * cos - high * sin);
                turned[pair + half] += share * (high * cos + low * sin);
            }
        }
        turned
    }

    fn query(&self, row: usize, head: usize, angle: Angle) -> Vec<f64> {
        let head_dim = self.layer.heads.2 as usize;
        let query = &self.data.queries[row * self.layer.query_row() + head * head_dim..][..head_dim];
        let scale = f64::from(self.layer.geometry().query_scale);
        self.turned(query, &[(1.0, FAR + row)], angle).into_iter().map(|x| x * scale).collect()
    }

    /// The key at `position` of the one key-value head, turned to a blend of positions.
    fn key(&self, position: usize, positions: &[(f64, usize)], angle: Angle) -> Vec<f64> {
        let head_dim = self.layer.heads.2 as usize;
        self.turned(&self.data.keys[position % HELD * head_dim..][..head_dim], positions, angle)
    }

    /// Scores of the chunks that the first query sees: the largest over heads of what halving finds.
    fn scores(&self, angle: Angle) -> Vec<f64> {
        let pruning = &self.layer.pruning;
        let limit = FAR - (pruning.window as usize - CHUNK);
        // The list ends one window before the end of the call.
        let first = pruning.sink as usize;
        let count = (FAR + self.rows - first - pruning.window as usize).div_ceil(CHUNK);
        let starts = (first..=limit).step_by(CHUNK).take(count);
        let descend = |head: usize, start: usize| {
            let queries: Vec<_> = (0..self.rows).map(|row| self.query(row, head, angle)).collect();
            let probe = |position: usize| {
                let branch = ihip_dsl::reference::rope::Branch::Right;
                let place = scan_key(pruning.rope.scan, branch, 0, position, &self.span()).expect("a key that moves");
                let key = self.key(position, &[(1.0, place)], angle);
                queries.iter().map(|query| dot(query, &key)).fold(f64::NEG_INFINITY, f64::max)
            };
            let (mut left, mut right, mut best) = (start, start + CHUNK, f64::NEG_INFINITY);
            for _ in 0..=CHUNK.ilog2() {
                if left > limit {
                    break;
                }
                let middle = usize::midpoint(left, right);
                let (low, high) = (probe(usize::midpoint(left, middle)), probe(usize::midpoint(middle, right)));
                best = best.max(low).max(high);
                if low > high { right = middle } else { left = middle }
            }
            best
        };
        let heads = 0..self.layer.heads.0 as usize;
        starts.map(|start| heads.clone().map(|head| descend(head, start)).fold(f64::NEG_INFINITY, f64::max)).collect()
    }

    /// The output for one list of blocks, of which every query sees all.
    fn output(&self, blocks: &[usize], angle: Angle) -> Vec<f64> {
        let pruning = &self.layer.pruning;
        let (sink, window) = (pruning.sink as usize, pruning.window as usize);
        let block = pruning.stages[0].chunk as usize;
        let (head_dim, end) = (self.layer.heads.2 as usize, FAR + self.rows);
        let packing = Packing { span: self.span(), window, sink, selected: blocks.len() * block };
        let listed = blocks.iter().flat_map(|&first| first..first + block).enumerate();
        let listed = listed.map(|(token, position)| (position, Group::Selected(token)));
        let sinks = (0..sink).map(|token| (token, Group::Sink(token)));
        let recent = (FAR + 1 - window..end).map(|position| (position, Group::Window));
        let keys: Vec<_> = (listed.chain(sinks).chain(recent))
            .map(|(position, group)| {
                let positions = attend_key(pruning.rope.attend, group, position, &packing);
                (position, group, self.key(position, &positions, angle))
            })
            .collect();
        let mut out = Vec::new();
        for row in 0..self.rows {
            for head in 0..self.layer.heads.0 as usize {
                let query = self.query(row, head, angle);
                let (mut sum, mut total) = (vec![0.0; head_dim], 0.0);
                for (position, group, key) in &keys {
                    let near = FAR + row < position + window;
                    if FAR + row < *position || (*group == Group::Window) != near {
                        continue;
                    }
                    let weight = dot(&query, key).exp();
                    total += weight;
                    let value = &self.data.values[position % HELD * head_dim..][..head_dim];
                    sum.iter_mut().zip(value).for_each(|(sum, value)| *sum += weight * f64::from(*value));
                }
                out.extend(sum.into_iter().map(|sum| sum / total));
            }
        }
        out
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The largest difference between two results.
fn furthest(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn far_layer(chunk: usize, window: u32, modes: (ScanRope, AttendRope)) -> Layer {
    let stages = [stage(0, chunk as u32, 8, 1)];
    let mut far = layer((2, 1, 32), KvType::F32, 16, (16, window), &stages, 16 * chunk as u32, modes);
    far.trained = 131_072;
    far
}

#[test]
fn scores_beyond_two_million_positions_need_better_angles_than_f32() {
    for mode in [ScanRope::DynamicExtend, ScanRope::SelfExtend] {
        for rows in [QUERIES, 1] {
            let call = Call::new(far_layer(CHUNK, 2 * CHUNK as u32, (mode, AttendRope::Streaming)), rows);
            let (mut attention, launches) = call.begin();
            attention.launch(&launches[..1]);
            let expected = call.scores(exact);
            let scores = attention.read_i32(Buffer::Scores);
            let got: Vec<f64> = scores.iter().filter_map(|&bits| score(bits)).map(f64::from).collect();
            let off = furthest(&expected, &got);
            assert!(off < f64::from(tolerance::SUM), "{mode:?}, {rows} rows: scores differ by {off}");
            let bound = furthest(&expected, &call.scores(rounded));
            assert!(bound > 1e-2, "{mode:?}, {rows} rows: f32 angles would be off by {bound} alone");
        }
    }
}

#[test]
fn outputs_beyond_two_million_positions_need_better_angles_than_f32() {
    let blocks = [16, 8_000, 1_000_000, 1_500_008, 2_080_000, 2_097_152, FAR / 8 * 8 - 80];
    for mode in [AttendRope::DynamicExtend, AttendRope::SelfExtend] {
        for rows in [QUERIES, 1] {
            let call = Call::new(far_layer(8, 64, (ScanRope::Relative, mode)), rows);
            let (mut attention, launches) = call.begin();
            let lists =
                if rows == 1 { [Buffer::CachedBlocks, Buffer::CachedCount] } else { [Buffer::Blocks, Buffer::Counts] };
            attention.write_i32(lists[0], &blocks.map(|block| block as i32));
            attention.write_i32(lists[1], &[blocks.len() as i32]);
            let attend = launches.iter().position(|launch| attention.family(launch) == Family::Attend);
            attention.launch(&launches[attend.expect("an attention")..]);
            let expected = call.output(&blocks, exact);
            let got: Vec<f64> = attention.out(rows).into_iter().map(f64::from).collect();
            let off = furthest(&expected, &got);
            assert!(
                off < f64::from(tolerance::output(KvType::F32, false)),
                "{mode:?}, {rows} rows: outputs differ by {off}"
            );
            let bound = furthest(&expected, &call.output(&blocks, rounded));
            assert!(bound > 1e-3, "{mode:?}, {rows} rows: f32 angles would be off by {bound} alone");
        }
    }
}
