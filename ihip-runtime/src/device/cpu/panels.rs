//! The queries of a block as right operands, and what they make of keys, or of what stands for keys.

use std::ops::Range;

use ihip_dsl::rope::RopeTable;
use ihip_dsl::{ChunkScore, QueryReduction};
use pulp::Arch;

use super::product::{Rows, dots, product, row_max};
use super::queries::Queries;

/// Vectors that are multiplied together: few enough that they stay in the first cache while all panels pass by.
const BATCH: usize = 96;

/// The rows of some query heads, neighbouring queries averaged.
pub(super) struct Panels<const W: usize> {
    /// `[heads][panels][depth][W]`. Columns that are left over repeat the first row of the head, which changes no
    /// maximum.
    values: Vec<f32>,
    heads: usize,
    /// Rows of a head.
    rows: usize,
    /// Elements of a row.
    depth: usize,
}

/// What becomes of a row before it is multiplied.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Form {
    /// Its positive elements, then its negative ones: the product with the greatest and the least elements of a chunk's
    /// keys is then the bound of its product with any of them.
    pub(super) parts: bool,
    /// All rows are averaged into one, whose product is the mean of theirs.
    pub(super) mean: bool,
}

impl<const W: usize> Panels<W> {
    /// The queries `rows` of `heads`: groups of `stride` neighbours are averaged over those that are there, then rotated
    /// where `position` has the first of them, by its true position; `None` leaves them as they are.
    pub(super) fn new(
        queries: &Queries<'_>,
        (rows, stride): (Range<usize>, usize),
        heads: Range<usize>,
        form: Form,
        position: impl Fn(usize) -> Option<usize>,
    ) -> Self {
        let head_dim = queries.head_dim();
        let bases = || rows.clone().step_by(stride);
        let depth = if form.parts { 2 * head_dim } else { head_dim };
        let count = if form.mean { 1 } else { bases().count() };
        let mut values = vec![0.0; heads.len() * count.next_multiple_of(W) * depth];
        let mut averaged = vec![0.0; depth];
        for (head, panels) in heads.clone().zip(values.chunks_exact_mut(count.next_multiple_of(W) * depth)) {
            let mut average = |base: usize, add: &mut dyn FnMut(&[f32])| {
                let neighbours = base..(base + stride).min(rows.end);
                let (mean, negative) = averaged.split_at_mut(head_dim);
                mean.copy_from_slice(queries.head(base, head));
                for neighbour in base + 1..neighbours.end {
                    for (mean, value) in mean.iter_mut().zip(queries.head(neighbour, head)) {
                        *mean += value;
                    }
                }
                let share = 1.0 / neighbours.len() as f32;
                mean.iter_mut().for_each(|mean| *mean *= share);
                // All neighbours turn by the same angle, so that rotating their mean is the same.
                if let Some(position) = position(queries.position(base)) {
                    queries.rope().rotate(mean, position);
                }
                // Without parts there is nowhere to put the negative ones.
                for (positive, negative) in mean.iter_mut().zip(negative) {
                    *negative = positive.min(0.0);
                    *positive = positive.max(0.0);
                }
                add(&averaged);
            };
            if form.mean {
                // One row is one column: what is left of the panel repeats it.
                let share = 1.0 / bases().count() as f32;
                for base in bases() {
                    average(base, &mut |row| {
                        for (columns, value) in panels.chunks_exact_mut(W).zip(row) {
                            columns.iter_mut().for_each(|sum| *sum += value * share);
                        }
                    });
                }
            } else {
                for (column, base) in (0..count.next_multiple_of(W)).zip(bases().chain(std::iter::repeat(rows.start))) {
                    let panel = &mut panels[column / W * W * depth..];
                    average(base, &mut |row| {
                        for (element, value) in row.iter().enumerate() {
                            panel[element * W + column % W] = *value;
                        }
                    });
                }
            }
        }
        Self { values, heads: heads.len(), rows: count, depth }
    }

    /// Rows of a head.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of a head's panels.
    pub(super) fn columns(&self) -> usize {
        self.rows.next_multiple_of(W)
    }

    /// Panels of a head, one after the other.
    pub(super) fn head(&self, head: usize) -> impl ExactSizeIterator<Item = &[f32]> {
        let length = self.columns() * self.depth;
        self.values[head * length..][..length].chunks_exact(W * self.depth)
    }

    /// Multiplies `vectors` with the rows of every head. Of the products of several vectors with the same target the
    /// largest stays, for every row or for all of them.
    pub(super) fn multiply<'v, V, P, T>(&self, arch: Arch, vectors: &Vectors<'v, V, P, T>, products: &mut Products)
    where
        V: Fn(usize) -> &'v [f32],
        P: Fn(usize) -> usize,
        T: Fn(usize) -> usize,
    {
        let Vectors { depth, ref range, rope, .. } = *vectors;
        let Products { count, columns, .. } = *products;
        let mut rotated = Vec::new();
        for first in range.clone().step_by(BATCH) {
            let batch = first..(first + BATCH).min(range.end);
            // Each is looked up once, however many panels pass by.
            let mut taken: [&[f32]; BATCH] = [&[]; BATCH];
            for (taken, vector) in taken.iter_mut().zip(batch.clone()) {
                *taken = (vectors.vector)(vector);
            }
            if let Some(rope) = rope {
                rotated.clear();
                for (vector, taken) in batch.clone().zip(&taken) {
                    let start = rotated.len();
                    rotated.extend_from_slice(taken);
                    rope.rotate(&mut rotated[start..], (vectors.place)(vector));
                }
                for (taken, rotated) in taken.iter_mut().zip(rotated.chunks_exact(depth)) {
                    *taken = rotated;
                }
            }
            for head in 0..self.heads {
                for (number, panel) in self.head(head).enumerate() {
                    let rows = Rows { step: 1, depth, range: batch.clone(), row: |row| taken[row - first] };
                    if columns == 0 {
                        let reduced = &mut products.reduced[head * count..][..count];
                        let merge = |row: usize, score: f32| {
                            let best = &mut reduced[(vectors.target)(row)];
                            *best = best.max(score);
                        };
                        match W {
                            1 => dots(arch, rows, panel, merge),
                            _ => row_max::<W, _, _>(arch, rows, panel, merge),
                        }
                    } else {
                        let products = &mut products.rows[head * count * columns..][..count * columns];
                        let mut merge = |row: usize, scores: &[f32]| {
                            let best = &mut products[(vectors.target)(row) * columns + number * W..][..W];
                            best.iter_mut().zip(scores).for_each(|(best, score)| *best = best.max(*score));
                        };
                        match W {
                            1 => dots(arch, rows, panel, |row, score| merge(row, &[score])),
                            _ => product::<W, _, _>(arch, rows, panel, |row, scores| merge(row, scores)),
                        }
                    }
                }
            }
        }
    }
}

/// Vectors in memory, numbered.
pub(super) struct Vectors<'a, V, P, T> {
    /// Elements of one.
    pub(super) depth: usize,
    /// Which ones.
    pub(super) range: Range<usize>,
    /// One of them.
    pub(super) vector: V,
    /// What turns them, where they are turned.
    pub(super) rope: Option<&'a RopeTable>,
    /// Where one is rotated to.
    pub(super) place: P,
    /// Whose score its product makes.
    pub(super) target: T,
}

/// What some query heads make of numbered chunks or keys.
#[derive(Default)]
pub(super) struct Products {
    /// Chunks or keys.
    pub(super) count: usize,
    /// `[heads][count]`: of all rows.
    pub(super) reduced: Vec<f32>,
    /// Columns of a head where its rows keep what they made of each; 0 where they do not.
    pub(super) columns: usize,
    /// `[heads][count][columns]`.
    pub(super) rows: Vec<f32>,
}

impl Products {
    /// Nothing yet, for so many heads, of `count` chunks or keys; `columns` as in the field.
    pub(super) fn clear(&mut self, heads: usize, count: usize, columns: usize) {
        self.count = count;
        self.columns = columns;
        self.reduced.clear();
        self.reduced.resize(heads * count, f32::NEG_INFINITY);
        self.rows.clear();
        self.rows.resize(heads * count * columns, f32::NEG_INFINITY);
    }

    /// What one head's rows made of each, `[count][columns]`.
    pub(super) fn head_rows(&self, head: usize) -> &[f32] {
        let length = self.count * self.columns;
        &self.rows[head * length..][..length]
    }

    /// The largest of what any head made of each.
    pub(super) fn largest(&self, largest: &mut Vec<f32>) {
        largest.clear();
        largest.extend_from_slice(&self.reduced[..self.count]);
        for scores in self.reduced[self.count..].chunks_exact(self.count.max(1)) {
            largest.iter_mut().zip(scores).for_each(|(largest, score)| *largest = largest.max(*score));
        }
    }

    /// Makes what head `of` made of the halves taken part of its scores of whole chunks, as head `head` here: the largest
    /// that it took, or the last. `taken` has for every half the number of its chunk and whether the left one was taken.
    pub(super) fn take(
        &mut self,
        head: usize,
        (left, right, of): (&Self, &Self, usize),
        taken: &[(usize, bool)],
        chunk_score: ChunkScore,
    ) {
        let merge = |score: &mut f32, taken: f32| {
            *score = match chunk_score {
                ChunkScore::RunningMax => score.max(taken),
                ChunkScore::Last => taken,
            };
        };
        let scores = &mut self.reduced[head * self.count..][..self.count];
        let halves = left.reduced[of * left.count..].iter().zip(&right.reduced[of * right.count..]);
        for ((chunk, left_taken), (left, right)) in taken.iter().zip(halves) {
            merge(&mut scores[*chunk], if *left_taken { *left } else { *right });
        }
        if self.columns > 0 {
            let scores = &mut self.rows[head * self.count * self.columns..][..self.count * self.columns];
            let halves =
                left.head_rows(of).chunks_exact(left.columns).zip(right.head_rows(of).chunks_exact(right.columns));
            for ((chunk, left_taken), (left, right)) in taken.iter().zip(halves) {
                let scores = scores[chunk * self.columns..][..self.columns].iter_mut();
                scores.zip(if *left_taken { left } else { right }).for_each(|(score, taken)| merge(score, *taken));
            }
        }
    }

    /// Reduces what the first `rows` columns, those that are no repetition, made of each.
    pub(super) fn reduce(&mut self, rows: usize, reduction: QueryReduction) {
        for (reduced, columns) in self.reduced.iter_mut().zip(self.rows.chunks_exact(self.columns)) {
            let rows = &columns[..rows];
            *reduced = match reduction {
                QueryReduction::Max => rows.iter().copied().fold(f32::NEG_INFINITY, f32::max),
                QueryReduction::Mean => rows.iter().sum::<f32>() / rows.len() as f32,
            };
        }
    }
}
