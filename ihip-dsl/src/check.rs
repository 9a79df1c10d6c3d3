//! Every rule that makes a declaration a pipeline.
//!
//! The rules run over what the words say, once for the pipeline and once for every `layers` with what it inherits.
//! They all run, each reports at the token that broke it, and none reports what another has already. What can be
//! wrong with a single word is in `draft.rs`.

use std::borrow::Cow;

use crate::ast::{Declaration, Located};
use crate::draft::{Choice, Draft, Field, Given, LayersDraft, Number, Origin, Reader, StageDraft};
use crate::error::{Errors, Rule, Ways};
use crate::words::{MOST_TOKENS, Mode, Place, QUERY_BLOCK, QUERY_STRIDE, REFRESH};
use crate::{
    AttendRope, Halving, LayerPruning, LayerRange, Pipeline, Refresh, Representative, Rope, ScanRope, Scoring, Stage,
};

/// Name that the command line gives to attention without pruning.
const DENSE: &str = "dense";

/// Checks a declaration.
///
/// # Errors
/// Every rule that it breaks, each at its token.
pub fn check<L: Clone>(declaration: &Declaration<L>) -> Result<Pipeline, Errors<L>> {
    let mut errors = Errors::new();
    let Located { value: name, at } = &declaration.name;
    name_rules(name, at, &mut errors);
    let mut draft = Reader { errors: &mut errors }.draft(at.clone(), &declaration.items, Place::Pipeline);
    let mut rules = Rules { errors };
    let base = rules.pruning(&mut draft);
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    let mut overrides = Vec::new();
    for LayersDraft { first, last, changes } in &draft.layers {
        let pruning = rules.pruning(&mut draft.changed_by(changes.clone()));
        if let (Some(first), Some(last)) = (first.given(), last.given()) {
            rules.range(first, last, &ranges);
            ranges.push((first.value, last.value));
            overrides.extend(pruning.map(|pruning| LayerRange {
                first: first.value,
                last: last.value,
                phases: pruning.into(),
            }));
        }
    }
    match base {
        Some(base) if rules.errors.is_empty() => {
            let (name, doc) = (Cow::Owned(name.clone()), Cow::Owned(declaration.doc.clone()));
            Ok(Pipeline::from_checked(name, doc, Refresh::Together, base.into(), Cow::Owned(overrides)))
        }
        _ => Err(rules.errors),
    }
}

/// Checks that no two declarations of one text share a name.
#[must_use]
pub fn names<'a, L: Clone + 'a>(names: impl Iterator<Item = &'a Located<String, L>>) -> Errors<L> {
    let mut errors = Errors::new();
    let mut known: Vec<&str> = Vec::new();
    for Located { value, at } in names {
        if known.contains(&value.as_str()) {
            errors.push(at.clone(), Rule::RepeatedName { name: value.clone() });
        }
        known.push(value);
    }
    errors
}

fn name_rules<L: Clone>(name: &str, at: &L, errors: &mut Errors<L>) {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !plain || !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        errors.push(at.clone(), Rule::InvalidName { name: name.to_owned() });
    } else if name.eq_ignore_ascii_case(DENSE) {
        errors.push(at.clone(), Rule::ReservedName { name: name.to_owned() });
    }
}

/// What was chosen, or the default where nothing was written.
fn or<M: Mode + Default, L>(choice: &Choice<M, L>) -> Option<M> {
    if choice.is_absent() { Some(M::default()) } else { choice.value() }
}

/// How a choice was written, and where.
fn spelled<M: Mode, L>(choice: &Choice<M, L>) -> Option<(&'static str, &Origin<L>)> {
    choice.given().map(|given| (given.value.word(), &given.origin))
}

/// Runs the rules over a draft and notes which are broken.
struct Rules<L> {
    errors: Errors<L>,
}

/// A stage with its defaults; `None` stands for what is in error already.
struct StageNumbers<'d, L> {
    draft: &'d StageDraft<L>,
    chunk: Option<&'d Given<u32, L>>,
    query_stride: Option<u32>,
    query_block: Option<Given<u32, L>>,
    refresh: Option<u32>,
}

impl<L: Clone> Rules<L> {
    /// Notes `rule` at the first of `tokens` that stands in the part that is being checked. Where all of them are
    /// inherited, it was noted when the rest of the pipeline was checked.
    fn broken(&mut self, rule: Rule, tokens: &[&Origin<L>]) {
        if let Some(token) = tokens.iter().find(|token| !token.inherited) {
            self.errors.push(token.at.clone(), rule);
        }
    }

    /// Runs every rule over `draft`, what it inherits included.
    fn pruning(&mut self, draft: &mut Draft<L>) -> Option<LayerPruning> {
        self.presence(draft);
        let default = match &draft.query_block {
            Field::Absent => {
                Some(Given { value: QUERY_BLOCK, origin: Origin { inherited: true, ..draft.here.clone() } })
            }
            field => field.given().cloned(),
        };
        let stages: Vec<_> = draft.stages.iter().map(|stage| StageNumbers::new(stage, default.as_ref())).collect();
        self.first_stage(&stages);
        for pair in stages.windows(2) {
            self.later_stage(&pair[0], &pair[1]);
        }
        for stage in &stages {
            self.query_stride(stage);
            self.scoring(stage, draft);
        }
        self.ranking(draft);
        self.sink_and_window(draft, &stages);
        self.last_cut(draft, &stages);
        self.rope(draft);

        let query_block = stages.last().map_or(default, |stage| stage.query_block.clone())?.value;
        let keep = if stages.is_empty() { 0 } else { draft.keep.value()? };
        let scan = if stages.is_empty() { ScanRope::None } else { draft.scan_rope.value()? };
        Some(LayerPruning {
            sink: draft.sink.value()?,
            window: draft.window.value()?,
            query_block,
            keep,
            ranking: or(&draft.ranking)?,
            rope: Rope { scan, attend: draft.attend_rope.value()? },
            stages: stages.iter().map(StageNumbers::stage).collect::<Option<_>>()?,
        })
    }

    /// Every word that has to be there is; one that is not is noted once and counts as wrong from then on.
    fn presence(&mut self, draft: &mut Draft<L>) {
        let Draft { here, stages, attend, rope, .. } = draft;
        let last_stage = stages.last().map(|stage| stage.here.clone());
        if draft.sink.is_absent() {
            draft.sink = self.missing("sink", Place::Pipeline, &[here]);
        }
        if draft.window.is_absent() {
            draft.window = self.missing("window", Place::Pipeline, &[here]);
        }
        match rope {
            None => {
                draft.attend_rope = self.missing("rope", Place::Pipeline, &[here]);
                draft.scan_rope = Field::Wrong;
            }
            Some(rope) => {
                if draft.attend_rope.is_absent() {
                    draft.attend_rope = self.missing("attend", Place::Rope, &[rope]);
                }
                if let (true, Some(stage)) = (draft.scan_rope.is_absent(), &last_stage) {
                    draft.scan_rope = self.missing("scan", Place::Rope, &[rope, stage]);
                }
            }
        }
        if let (true, Some(stage)) = (draft.keep.is_absent(), &last_stage) {
            draft.keep = match attend {
                Some(attend) => self.missing("keep", Place::Attend, &[attend, stage]),
                None => self.missing("attend", Place::Pipeline, &[stage]),
            };
        }
        for stage in stages {
            if stage.chunk.is_absent() {
                stage.chunk = self.missing("chunk", Place::Stage, &[&stage.here]);
            }
        }
    }

    fn missing<T>(&mut self, word: &str, place: Place, tokens: &[&Origin<L>]) -> Field<T> {
        if let Some(word) = place.word(word) {
            self.broken(Rule::MissingWord { word: word.name, place, example: word.example }, tokens);
        }
        Field::Wrong
    }

    fn first_stage(&mut self, stages: &[StageNumbers<'_, L>]) {
        if let Some(keep) = stages.first().and_then(|stage| stage.draft.keep.given()) {
            self.broken(Rule::FirstStageWithKeep { keep: keep.value }, &[&keep.origin]);
        }
    }

    fn later_stage(&mut self, before: &StageNumbers<'_, L>, stage: &StageNumbers<'_, L>) {
        if stage.draft.keep.is_absent() {
            let chunk = before.chunk.map_or(256, |chunk| chunk.value);
            self.broken(Rule::LaterStageWithoutKeep { example: chunk * 128 }, &[&stage.draft.here]);
        }
        if let (Some(keep), Some(chunk)) = (stage.draft.keep.given(), before.chunk)
            && !keep.value.is_multiple_of(chunk.value)
        {
            let ways = Ways::multiples("keep", keep.value, chunk.value, 1, MOST_TOKENS);
            let rule = Rule::KeepNotMultiple { keep: keep.value, chunk: chunk.value, ways };
            self.broken(rule, &[&keep.origin, &chunk.origin]);
        }
        if let (Some(chunk), Some(before)) = (stage.chunk, before.chunk)
            && !before.value.is_multiple_of(chunk.value)
        {
            let ways = Ways::divisors("chunk", chunk.value, before.value);
            let rule = Rule::ChunkDoesNotDivide { chunk: chunk.value, before: before.value, ways };
            self.broken(rule, &[&chunk.origin, &before.origin]);
        }
        if let (Some(block), Some(block_before)) = (&stage.query_block, &before.query_block)
            && !block_before.value.is_multiple_of(block.value)
        {
            let ways = Ways::divisors("query_block", block.value, block_before.value);
            let rule = Rule::QueryBlockDoesNotDivide { query_block: block.value, before: block_before.value, ways };
            let mut tokens = [&block.origin, &block_before.origin];
            if stage.draft.query_block.is_absent() {
                tokens.reverse();
            }
            self.broken(rule, &tokens);
        }
    }

    fn query_stride(&mut self, stage: &StageNumbers<'_, L>) {
        if let (Some(stride), Some(block)) = (stage.draft.query_stride.given(), &stage.query_block)
            && !block.value.is_multiple_of(stride.value)
        {
            let ways = Ways::divisors("query_stride", stride.value, block.value);
            let rule = Rule::StrideDoesNotDivide { query_stride: stride.value, query_block: block.value, ways };
            self.broken(rule, &[&stride.origin, &block.origin]);
        }
    }

    fn scoring(&mut self, stage: &StageNumbers<'_, L>, layer: &Draft<L>) {
        let StageDraft { representative, probe, chunk_score, descent, rope, .. } = stage.draft;
        if let Some(representative) = representative.given()
            && !matches!(representative.value, Representative::Halving(_))
        {
            let chosen = representative.value.word();
            let mut of_halving = |word, choice: Option<(&'static str, &Origin<L>)>| {
                if let Some((value, origin)) = choice {
                    let rule = Rule::NothingIsHalved { word, value, representative: chosen };
                    self.broken(rule, &[origin, &representative.origin]);
                }
            };
            of_halving("probe", spelled(probe));
            of_halving("chunk_score", spelled(chunk_score));
            of_halving("descent", spelled(descent));
            let rope = rope.given().or(layer.scan_rope.given());
            if let Some(rope) = rope
                && matches!(representative.value, Representative::Mean | Representative::MinMax)
                && matches!(rope.value, ScanRope::DynamicExtend | ScanRope::SelfExtend)
            {
                let rule = Rule::SummaryOfMovingKeys { representative: chosen, rope: rope.value.word() };
                self.broken(rule, &[&representative.origin, &rope.origin]);
            }
        }
        if let (Some(rope), Some(attend)) = (rope.given(), layer.attend_rope.given())
            && attend.value == AttendRope::None
            && rope.value != ScanRope::None
        {
            let rule = Rule::ScanOfRotatedCache { word: "rope", scan: rope.value.word() };
            self.broken(rule, &[&rope.origin, &attend.origin]);
        }
    }

    fn ranking(&mut self, draft: &Draft<L>) {
        if let Some(ranking) = draft.ranking.given()
            && draft.stages.is_empty()
        {
            self.broken(Rule::RankingWithoutStages { ranking: ranking.value.word() }, &[&ranking.origin]);
        }
    }

    fn sink_and_window(&mut self, draft: &Draft<L>, stages: &[StageNumbers<'_, L>]) {
        let first_chunk = stages.first().and_then(|stage| stage.chunk);
        let last_chunk = stages.last().and_then(|stage| stage.chunk);
        if let (Some(sink), Some(chunk)) = (draft.sink.given(), last_chunk)
            && !sink.value.is_multiple_of(chunk.value)
        {
            let ways = Ways::multiples("sink", sink.value, chunk.value, 0, MOST_TOKENS);
            let rule = Rule::SinkNotMultiple { sink: sink.value, chunk: chunk.value, ways };
            self.broken(rule, &[&sink.origin, &chunk.origin]);
        }
        // The scan admits a chunk up to `window − chunk` before the query, and a probe reads up to `chunk − 1` into it.
        if let (Some(window), Some(chunk)) = (draft.window.given(), first_chunk) {
            let least = 2 * chunk.value - 1;
            if window.value < least {
                let rule = Rule::WindowTooShort { window: window.value, chunk: chunk.value, least };
                self.broken(rule, &[&window.origin, &chunk.origin]);
            }
        }
    }

    fn last_cut(&mut self, draft: &Draft<L>, stages: &[StageNumbers<'_, L>]) {
        let Some(keep) = draft.keep.given() else {
            return;
        };
        let Some(last) = stages.last() else {
            return self.broken(Rule::LastCutWithoutStages { keep: keep.value }, &[&keep.origin]);
        };
        if let Some(chunk) = last.chunk
            && !keep.value.is_multiple_of(chunk.value)
        {
            let ways = Ways::multiples("keep", keep.value, chunk.value, 1, MOST_TOKENS);
            let rule = Rule::LastCutNotMultiple { keep: keep.value, chunk: chunk.value, ways };
            self.broken(rule, &[&keep.origin, &chunk.origin]);
        }
    }

    fn rope(&mut self, draft: &Draft<L>) {
        let Some(scan) = draft.scan_rope.given() else {
            return;
        };
        let word = scan.value.word();
        if draft.stages.is_empty() {
            self.broken(Rule::ScanWithoutStages { scan: word }, &[&scan.origin]);
        } else if let Some(attend) = draft.attend_rope.given()
            && attend.value == AttendRope::None
            && scan.value != ScanRope::None
        {
            self.broken(Rule::ScanOfRotatedCache { word: "scan", scan: word }, &[&scan.origin, &attend.origin]);
        }
    }

    fn range(&mut self, first: &Given<u32, L>, last: &Given<u32, L>, above: &[(u32, u32)]) {
        let (start, end) = (first.value, last.value);
        if end < start {
            self.broken(Rule::BackwardsRange { first: start, last: end }, &[&first.origin]);
        }
        for &(other_first, other_last) in above {
            if start <= other_last && other_first <= end {
                let rule = Rule::OverlappingLayers { first: start, last: end, other_first, other_last };
                self.broken(rule, &[&first.origin]);
            }
        }
    }
}

impl<'d, L: Clone> StageNumbers<'d, L> {
    fn new(draft: &'d StageDraft<L>, query_block: Option<&Given<u32, L>>) -> Self {
        let or = |field: &Number<L>, default| {
            if field.is_absent() { Some(default) } else { field.value() }
        };
        Self {
            draft,
            chunk: draft.chunk.given(),
            query_stride: or(&draft.query_stride, QUERY_STRIDE),
            query_block: if draft.query_block.is_absent() { query_block } else { draft.query_block.given() }.cloned(),
            refresh: or(&draft.refresh, REFRESH),
        }
    }

    fn stage(&self) -> Option<Stage> {
        Some(Stage {
            keep: self.draft.keep.value(),
            chunk: self.chunk?.value,
            query_block: self.query_block.as_ref()?.value,
            query_stride: self.query_stride?,
            refresh: self.refresh?,
            scoring: self.scoring()?,
            rope: match &self.draft.rope {
                Field::Absent => None,
                field => Some(field.value()?),
            },
        })
    }

    fn scoring(&self) -> Option<Scoring> {
        let StageDraft { representative, probe, chunk_score, descent, query_reduction, scores, .. } = self.draft;
        let halving = Halving { probe: or(probe)?, chunk_score: or(chunk_score)?, descent: or(descent)? };
        Some(Scoring {
            representative: match or(representative)? {
                Representative::Halving(_) => Representative::Halving(halving),
                other => other,
            },
            query_reduction: or(query_reduction)?,
            scores: or(scores)?,
        })
    }
}
