//! Chunks scored by descent: each is halved down to a token, and scores what the halves taken scored (paper §3.1,
//! Algorithm 3).

use ihip_dsl::rope::Branch;
use ihip_dsl::{Halving, Probe};

use super::panels::{Form, Panels, Products, Vectors};
use super::scan::HeadScan;

/// A chunk on its way down.
struct Descent {
    index: usize,
    left: usize,
    right: usize,
}

impl Descent {
    fn middle(&self) -> usize {
        (self.left + self.right) / 2
    }
}

impl HeadScan<'_> {
    /// What the scored heads make of the chunks `visible` by the halves that all heads of the scan take together.
    pub(super) fn descend<const W: usize>(&self, halving: Halving, visible: &[usize]) -> Products {
        let length = self.scan.stage.chunk;
        let mut descents: Vec<Descent> =
            visible.iter().enumerate().map(|(index, &left)| Descent { index, left, right: left + length }).collect();

        let distances = [Branch::Left, Branch::Right].map(|branch| self.distance(branch));
        let form = Form { parts: false, mean: self.rows_become_one() };
        let left_rows = self.panels::<W>(distances[0], form);
        let other_rows = (distances[0] != distances[1]).then(|| self.panels::<W>(distances[1], form));
        let right_rows = other_rows.as_ref().unwrap_or(&left_rows);
        let mut left_half = Products::default();
        let mut right_half = Products::default();
        let (mut left_scores, mut right_scores) = (Vec::new(), Vec::new());
        let mut taken = Vec::new();
        let mut scores = self.products(self.scored.len(), visible.len(), &left_rows);

        for _ in 0..self.scan.stage.halvings {
            descents.retain(|chunk| chunk.left < chunk.right && chunk.left <= self.limit);
            let first = |chunk: &Descent| chunk.left;
            let left = |chunk: &Descent| (chunk.left + chunk.middle()) / 2;
            let right = |chunk: &Descent| (chunk.middle() + chunk.right) / 2;
            match halving.probe {
                Probe::Middle => {
                    self.probe(&descents, left, &left_rows, Branch::Left, &mut left_half);
                    self.probe(&descents, right, right_rows, Branch::Right, &mut right_half);
                }
                Probe::First => {
                    self.probe(&descents, first, &left_rows, Branch::Left, &mut left_half);
                    self.probe(&descents, Descent::middle, right_rows, Branch::Right, &mut right_half);
                }
            }
            left_half.largest(&mut left_scores);
            right_half.largest(&mut right_scores);
            taken.clear();
            for (chunk, (left, right)) in descents.iter_mut().zip(left_scores.iter().zip(&right_scores)) {
                // A tie goes right.
                let goes_left = left > right;
                let middle = chunk.middle();
                (chunk.left, chunk.right) = if goes_left { (chunk.left, middle) } else { (middle, chunk.right) };
                taken.push((chunk.index, goes_left));
            }
            for (head, of) in self.scored.clone().enumerate() {
                let halves = (&left_half, &right_half, of - self.heads.start);
                scores.take(head, halves, &taken, halving.chunk_score);
            }
        }
        scores
    }

    /// Scores the key at `position` of every chunk.
    fn probe<const W: usize>(
        &self,
        descents: &[Descent],
        position: impl Fn(&Descent) -> usize,
        panels: &Panels<W>,
        branch: Branch,
        half: &mut Products,
    ) {
        let head_dim = self.scan.queries.head_dim();
        let placing = self.placing(branch);
        let reader = self.keys();
        let keys = Vectors {
            depth: head_dim,
            range: 0..descents.len(),
            vector: |number: usize| reader.row(position(&descents[number])),
            rope: placing.rope(),
            place: |number: usize| placing.of(descents[number].index, position(&descents[number])),
            target: |number| number,
        };
        let columns = if self.rows_keep_scores() { panels.columns() } else { 0 };
        half.clear(self.heads.len(), descents.len(), columns);
        panels.multiply(self.scan.arch, &keys, half);
        if columns > 0 {
            half.reduce(panels.rows(), self.scan.stage.scoring.query_reduction);
        }
    }
}
