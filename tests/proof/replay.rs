//! The scores that a stage should have, along the descents that its kernels took.
//!
//! Everything is f64. Beside each score stands how far a kernel may be off it ([`tolerance`]); where a kernel took the half
//! that scores lower, by more than the two may be off together, it took the wrong one.

use std::ops::Range;

use ihip_dsl::reference::rope::{self, Branch, Span};
use ihip_dsl::reference::{Tensors, scan};
use ihip_dsl::{ChunkScore, Descent, Halving, KvType, Probe, QueryReduction, Representative, ScanRope, Scores, Stage};
use ihip_tests::support::tolerance;

/// A score and how far a kernel may be off it. What is not finite says nothing of either.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounded {
    pub(super) value: f64,
    pub(super) bound: f64,
    /// What the bound is a share of.
    pub(super) size: f64,
}

impl Bounded {
    pub(super) fn is_finite(self) -> bool {
        self.value.is_finite() && self.bound.is_finite()
    }

    fn larger(self, other: Self) -> Self {
        // One that says nothing leaves nothing to be said of the larger.
        let value = if other.value > self.value || other.value.is_nan() { other.value } else { self.value };
        Self { value, bound: most(self.bound, other.bound), size: most(self.size, other.size) }
    }
}

/// Whether a descent may take the lower half, or else the upper one, of halves that score `lower` and `upper`.
fn may_take(takes_lower: bool, lower: Bounded, upper: Bounded) -> bool {
    let (ahead, both) = (lower.value - upper.value, lower.bound + upper.bound);
    // A tie goes right.
    let within = if takes_lower { ahead > -both } else { ahead <= both };
    within || !(lower.is_finite() && upper.is_finite())
}

/// The larger one, or NaN where either is.
fn most(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// One stage of one call.
pub(super) struct Scan<'a> {
    pub(super) tensors: &'a Tensors<'a>,
    pub(super) kv_type: KvType,
    pub(super) stage: usize,
    /// Whether every product is exact, so that nothing may be off.
    pub(super) exact: bool,
    /// Queries of the block.
    pub(super) rows: Range<usize>,
    /// First positions of the chunks in the list.
    pub(super) chunks: &'a [usize],
}

/// A row of averaged queries: its elements, and how large each pair of them was before neighbours cancelled out.
struct Row {
    at: Vec<f64>,
    sizes: Vec<f64>,
}

/// A half of a chunk by the key that stands for it.
struct Half {
    deciding: Bounded,
    own: Bounded,
    rows: Vec<Bounded>,
}

impl Scan<'_> {
    fn stage(&self) -> &Stage {
        &self.tensors.pruning.stages[self.stage]
    }

    fn rope(&self) -> ScanRope {
        scan::scan_rope(self.tensors.pruning, self.stage)
    }

    fn visible(&self, left: usize) -> bool {
        left + scan::scan_window(self.tensors.pruning) <= self.tensors.position(self.rows.start)
    }

    /// The scores of the list over the query heads `heads` of one ranking; `descents` says where each head's descent
    /// into each chunk ended, `[query heads][chunks]`.
    ///
    /// # Errors
    /// A descent that rounding does not excuse, in words.
    pub(super) fn scores(&self, heads: Range<usize>, descents: &[i32]) -> Result<Vec<Option<Bounded>>, String> {
        let Representative::Halving(halving) = self.stage().scoring.representative else {
            return Ok(self.whole(heads));
        };
        let mut scores = vec![None; self.chunks.len()];
        for head in heads {
            let deciders = match halving.descent {
                Descent::Each => head..head + 1,
                Descent::KvGroup => self.tensors.group(self.tensors.kv_head(head)),
            };
            let queries: Vec<Vec<Row>> = deciders.clone().map(|head| self.queries(head)).collect();
            let ends = &descents[head * self.chunks.len()..][..self.chunks.len()];
            let walk = |(index, &end): (usize, &i32)| {
                let walked = self.walk(halving, head, &deciders, &queries, index, end);
                walked.map_err(|turn| format!("head {head}, chunk {index} at {}: {turn}", self.chunks[index]))
            };
            let walked = ends.iter().enumerate().map(walk).collect::<Result<Vec<_>, String>>()?;
            let of_head: Vec<Option<Bounded>> = match self.stage().scoring.scores {
                Scores::Raw => walked.iter().map(|walked| walked.as_ref().map(|walked| walked.own)).collect(),
                Scores::Soft => self.soft(&walked),
            };
            for (score, of_head) in scores.iter_mut().zip(of_head) {
                *score = match (*score, of_head) {
                    (Some(score), Some(of_head)) => Some(Bounded::larger(score, of_head)),
                    (score, of_head) => score.or(of_head),
                };
            }
        }
        Ok(scores)
    }

    /// Goes into the chunk with number `index` as the kernel did that ended at `end`.
    fn walk(
        &self,
        halving: Halving,
        own: usize,
        deciders: &Range<usize>,
        queries: &[Vec<Row>],
        index: usize,
        end: i32,
    ) -> Result<Option<Half>, String> {
        let chunk = self.stage().chunk as usize;
        let (mut left, mut right) = (self.chunks[index], self.chunks[index] + chunk);
        if self.stage == 0 {
            right = right.min(self.tensors.t_max.saturating_sub(scan::scan_window(self.tensors.pruning)));
        }
        let begins = left < right && self.visible(left);
        match (begins, end) {
            (false, -1) => return Ok(None),
            (true, 0..) => {}
            _ => {
                return Err(format!(
                    "a descent that {} ended at {end}",
                    if begins { "begins" } else { "does not begin" }
                ));
            }
        }
        let (token, any_left) = (end as usize / 2, end % 2 == 1);
        let mut reached: Option<Half> = None;
        for _ in 0..=chunk.ilog2() {
            if left >= right || !self.visible(left) {
                continue;
            }
            let middle = (left + right) / 2;
            let keys = match halving.probe {
                Probe::Middle => [(left + middle) / 2, (middle + right) / 2],
                Probe::First => [left, middle],
            };
            let [lower, upper] = [(keys[0], Branch::Left), (keys[1], Branch::Right)]
                .map(|(key, branch)| self.half(own, deciders, queries, index, key, branch));
            // One token is left: the descent ends on it, or leaves nothing.
            let takes_left = if right - left > 1 { token < middle } else { !any_left };
            if !may_take(takes_left, lower.deciding, upper.deciding) {
                let side = if takes_left { "left" } else { "right" };
                return Err(format!(
                    "it goes {side} in {left}..{right}, where the left half scores {} ± {:.1e} and the right one {} ± {:.1e}",
                    lower.deciding.value, lower.deciding.bound, upper.deciding.value, upper.deciding.bound
                ));
            }
            let taken = if takes_left {
                right = middle;
                lower
            } else {
                left = middle;
                upper
            };
            reached = Some(match (halving.chunk_score, reached) {
                (ChunkScore::RunningMax, Some(before)) => Half {
                    deciding: taken.deciding,
                    own: before.own.larger(taken.own),
                    rows: before.rows.iter().zip(&taken.rows).map(|(before, row)| before.larger(*row)).collect(),
                },
                (ChunkScore::RunningMax | ChunkScore::Last, _) => taken,
            });
        }
        if (left, left < right) != (token, any_left) {
            return Err(format!("it ended at {token}, and no descent ends there: {left}..{right}"));
        }
        Ok(reached)
    }

    /// The half of chunk `index` that the key at `position` stands for.
    fn half(
        &self,
        own: usize,
        deciders: &Range<usize>,
        queries: &[Vec<Row>],
        index: usize,
        position: usize,
        branch: Branch,
    ) -> Half {
        let span = Span { queries: self.tensors.positions(&self.rows), trained: self.tensors.trained };
        let place = rope::scan_key(self.rope(), branch, index, position, &span);
        let key = self.tensors.key(position, self.tensors.kv_head(own));
        let turned = match place {
            Some(place) => rope::rotate(key, place, self.tensors.frequencies),
            None => key.to_vec(),
        };
        let sizes = pairs(key);
        let mut half: Option<Half> = None;
        for (head, rows) in deciders.clone().zip(queries) {
            let rows: Vec<Bounded> = rows.iter().map(|row| self.product(row, &turned, &sizes)).collect();
            let score = self.reduced(&rows);
            half = Some(match half {
                None => Half { deciding: score, own: score, rows },
                Some(before) if head == own => Half { deciding: before.deciding.larger(score), own: score, rows },
                Some(before) => Half { deciding: before.deciding.larger(score), ..before },
            });
        }
        half.expect("a head decides")
    }

    fn product(&self, row: &Row, key: &[f64], sizes: &[f64]) -> Bounded {
        let value = dot(&row.at, key);
        let size = dot(&row.sizes, sizes);
        self.bounded(value, size, row.sizes.iter().sum::<f64>() + sizes.iter().sum::<f64>())
    }

    fn bounded(&self, value: f64, size: f64, elements: f64) -> Bounded {
        let stage = self.stage();
        let thirds = stage.scoring.representative == Representative::Mean && !stage.chunk.is_power_of_two();
        if self.exact && !thirds {
            // Cosines and sines of f64 are not quite 0; every product is a multiple of far more than this.
            const STEP: f64 = (1 << 20) as f64;
            return Bounded {
                value: (value * STEP).round() / STEP,
                bound: if size.is_finite() { 0.0 } else { size },
                size,
            };
        }
        // Besides elements, sums are over neighbours, over rows where they are averaged, and over keys where those are.
        let rows = if stage.scoring.query_reduction == QueryReduction::Mean { stage.query_block } else { 0 };
        let keys = if stage.scoring.representative == Representative::Mean { stage.chunk } else { 0 };
        let terms = self.tensors.key(0, 0).len() + (stage.query_stride + rows + keys) as usize;
        let turned = matches!(self.rope(), ScanRope::ChunkIndexed | ScanRope::DynamicExtend | ScanRope::SelfExtend);
        let two = turned || stage.scoring.representative == Representative::Mean;
        let share = if two { tolerance::score_of_two } else { tolerance::score };
        let bound = share(self.kv_type, terms) * size + tolerance::least(self.kv_type) * elements;
        Bounded { value, bound, size }
    }

    fn reduced(&self, rows: &[Bounded]) -> Bounded {
        let largest = rows.iter().copied().reduce(Bounded::larger).expect("a block has rows");
        let value = match self.stage().scoring.query_reduction {
            QueryReduction::Max => largest.value,
            QueryReduction::Mean => rows.iter().map(|row| row.value).sum::<f64>() / rows.len() as f64,
        };
        Bounded { value, ..largest }
    }

    /// The rows of a head, where the stage's mode has them: neighbours at the position of the first, averaged.
    fn queries(&self, head: usize) -> Vec<Row> {
        let stride = self.stage().query_stride as usize;
        let window = scan::scan_window(self.tensors.pruning);
        let row = |base: usize| {
            let neighbours = base..(base + stride).min(self.rows.end);
            let place = rope::scan_query(self.rope(), self.tensors.position(base), self.chunks.len(), window);
            let head_dim = self.tensors.query(base, head).len();
            let mut row = Row { at: vec![0.0; head_dim], sizes: vec![0.0; head_dim / 2] };
            let share = 1.0 / neighbours.len() as f64;
            for neighbour in neighbours {
                let query = self.tensors.query(neighbour, head);
                let turned = match place {
                    Some(place) => rope::rotate(query, place, self.tensors.frequencies),
                    None => query.to_vec(),
                };
                row.at.iter_mut().zip(turned).for_each(|(at, x)| *at += share * x);
                row.sizes.iter_mut().zip(pairs(query)).for_each(|(size, x)| *size += share * x);
            }
            row
        };
        self.rows.clone().step_by(stride).map(row).collect()
    }

    /// Scores of what is not halved, as the reference has them: no choice of the kernel's enters into them.
    fn whole(&self, heads: Range<usize>) -> Vec<Option<Bounded>> {
        let scores = scan::scan(self.tensors, self.stage, self.rows.clone(), heads.clone(), self.chunks);
        let kv_heads = self.tensors.kv_head(heads.start)..self.tensors.kv_head(heads.end - 1) + 1;
        let rows: Vec<Row> = heads.clone().flat_map(|head| self.queries(head)).collect();
        let of_chunk = |(&start, &score): (&usize, &f32)| {
            if !self.visible(start) {
                return None;
            }
            let mut sizes = vec![0.0; self.tensors.key(0, 0).len() / 2];
            for position in start..start + self.stage().chunk as usize {
                for head in kv_heads.clone() {
                    let pairs = pairs(self.tensors.key(position, head));
                    sizes.iter_mut().zip(pairs).for_each(|(size, pair)| *size = most(*size, pair));
                }
            }
            // Bounds take elements one by one, and both of a pair may be as large as it is long.
            let size = 2.0 * rows.iter().map(|row| dot(&row.sizes, &sizes)).fold(0.0, most);
            let elements = rows.iter().map(|row| row.sizes.iter().sum::<f64>()).fold(0.0, f64::max);
            Some(self.bounded(f64::from(score), size, elements + sizes.iter().sum::<f64>()))
        };
        let bounded: Vec<Option<Bounded>> = self.chunks.iter().zip(&scores.scores).map(of_chunk).collect();
        if self.stage().scoring.scores == Scores::Raw {
            return bounded;
        }
        let worst = self.worst(bounded.iter().flatten());
        bounded.into_iter().map(|score| score.map(|score| self.logarithm(score.value, worst))).collect()
    }

    /// A head's scores as logarithms of each row's softmax over the chunks.
    fn soft(&self, walked: &[Option<Half>]) -> Vec<Option<Bounded>> {
        let scored: Vec<&Half> = walked.iter().flatten().collect();
        let rows = scored.first().map_or(0, |half| half.rows.len());
        let totals: Vec<f64> =
            (0..rows).map(|row| log_sum_exp(scored.iter().map(|half| half.rows[row].value))).collect();
        let worst = self.worst(scored.iter().flat_map(|half| &half.rows));
        let score = |half: &Half| {
            let logarithms = half.rows.iter().zip(&totals).map(|(row, total)| row.value - total);
            let value = match self.stage().scoring.query_reduction {
                QueryReduction::Max => logarithms.fold(f64::NEG_INFINITY, f64::max),
                QueryReduction::Mean => log_sum_exp(logarithms) - (rows as f64).ln(),
            };
            self.logarithm(value, worst)
        };
        walked.iter().map(|half| half.as_ref().map(score)).collect()
    }

    /// The largest bound and size of any: a softmax depends on all of them.
    fn worst<'s>(&self, scores: impl Iterator<Item = &'s Bounded>) -> Bounded {
        let nothing = Bounded { value: 0.0, bound: 0.0, size: 0.0 };
        scores.fold(nothing, |worst, score| Bounded {
            value: 0.0,
            bound: most(worst.bound, score.bound),
            size: most(worst.size, score.size),
        })
    }

    fn logarithm(&self, value: f64, worst: Bounded) -> Bounded {
        let size = most(worst.size, value.abs());
        Bounded { value, bound: 2.0 * worst.bound + tolerance::logarithm(self.chunks.len(), size), size }
    }
}

/// The length of each pair of elements that turn together.
pub(super) fn pairs(x: &[f64]) -> Vec<f64> {
    let (low, high) = x.split_at(x.len() / 2);
    low.iter().zip(high).map(|(a, b)| a.hypot(*b)).collect()
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    largest + values.map(|x| (x - largest).exp()).sum::<f64>().ln()
}
