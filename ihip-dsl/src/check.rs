//! Every rule that makes a declaration a pipeline.
//!
//! The rules run over what the words say for each phase of the layers that no `layers` names, and of the others, with
//! all that they inherit. They all run, each reports at the token that broke it, and none reports what another has
//! already. They are constant functions: where a number is a constant of Rust, or inherited from another type, the
//! compiler of the program runs them. What can be wrong with a single word is in `draft.rs`.

use crate::ast::{Declaration, Located};
use crate::clash::Clash;
use crate::declared::{Block, Declared, Field, Given, Phase, Range, Slot, StageSlot, StageWords, Token, Words, slice};
use crate::draft::{Door, Draft};
use crate::error::{Errors, Rule};
use crate::text::{Text, Ways};
use crate::words::{
    ATTEND_AT, ATTEND_POSITIONS, CHUNK, CUT, KEEP, MOST_TOKENS, Mode, POSITIONS, Place, QUERY_BLOCK, SCAN, SEGMENT,
    SINK, WINDOW, Word,
};
use crate::{AttendRope, ChunkScore, Descent, Pipeline, Probe, Ranking, Representative, ScanRope, Warning};

/// Name that the command line gives to attention without pruning.
const DENSE: &str = "dense";
/// Letters of a name at most: files are called by the names of kernels, and these have more to say than the pipeline's.
const MOST_NAME: usize = 64;
/// Clashes that are told at most.
const MOST_CLASHES: usize = 64;

/// A declaration that has passed every rule.
#[derive(Clone, Debug)]
pub struct Checked<L> {
    /// What it says, for those that inherit from it.
    pub declared: Declared,
    /// What it is.
    pub pipeline: Pipeline,
    /// What is legal in it and unwise.
    pub warnings: Vec<Located<Warning, L>>,
}

impl<L> Checked<L> {
    /// The same with other locations.
    pub(crate) fn locate<M>(self, at: impl Fn(L) -> M) -> Checked<M> {
        let Self { declared, pipeline, warnings } = self;
        let warnings =
            warnings.into_iter().map(|warning| Located { value: warning.value, at: at(warning.at) }).collect();
        Checked { declared, pipeline, warnings }
    }
}

/// Pipelines that a text may inherit from, by their names.
pub type Known<'k> = [(&'k str, &'k Declared)];

/// Checks a declaration of a text, which may inherit from one of `known`.
///
/// # Errors
/// Every rule that it breaks, each at its token; none where only what it inherits from is in error.
pub fn check<L: Clone>(declaration: &Declaration<L>, known: &Known<'_>) -> Result<Checked<L>, Errors<L>> {
    let mut draft = Draft::new(declaration, Door::Text);
    if let Some(Located { value: name, at }) = &declaration.parent {
        match known.iter().find(|(known, _)| known == name) {
            Some((_, parent)) if parent.stands_in() => return Err(draft.errors),
            Some((_, parent)) => draft.inherit(parent),
            None if *name == declaration.name.value => {
                draft.errors.push(at.clone(), Rule::ParentOfItself { name: name.clone() });
                return Err(draft.errors);
            }
            None => {
                let known: Vec<_> = known.iter().map(|(name, _)| (*name).to_owned()).collect();
                draft.errors.push(at.clone(), Rule::UnknownParent { name: name.clone(), known });
                return Err(draft.errors);
            }
        }
    }
    draft.check();
    let warnings = draft.warnings();
    let Draft { declared, errors, .. } = draft;
    errors.or(())?;
    let pipeline = declared.pipeline(&declaration.name.value, &declaration.doc);
    Ok(Checked { declared, pipeline, warnings })
}

/// Checks `declarations` of one text, each of which may inherit from one above or from one of `known`, and returns those
/// that pass.
pub fn all<'a, L: Clone + 'a>(
    declarations: impl Iterator<Item = &'a Declaration<L>>,
    known: &Known<'_>,
) -> (Vec<Checked<L>>, Errors<L>) {
    let mut errors = Errors::new();
    let mut above: Vec<(&str, Declared)> = Vec::new();
    let mut right = Vec::new();
    for declaration in declarations {
        let near = above.iter().rev().map(|(name, declared)| (*name, declared));
        let checked = check(declaration, &near.chain(known.iter().copied()).collect::<Vec<_>>());
        let declared = checked.as_ref().map_or(Declared::STAND_IN, |checked| checked.declared.clone());
        above.push((&declaration.name.value, declared));
        match checked {
            Ok(checked) => right.push(checked),
            Err(found) => errors.append(found),
        }
    }
    (right, errors)
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

/// Checks a name by itself.
pub(crate) fn name<L: Clone>(name: &Located<String, L>, errors: &mut Errors<L>) {
    let Located { value: name, at } = name;
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !plain || !name.starts_with(|c: char| c.is_ascii_alphabetic()) || name.len() > MOST_NAME {
        errors.push(at.clone(), Rule::InvalidName { name: name.to_owned(), most: MOST_NAME });
    } else if name.eq_ignore_ascii_case(DENSE) {
        errors.push(at.clone(), Rule::ReservedName { name: name.to_owned() });
    }
}

/// The rules that a declaration breaks.
#[derive(Clone, Copy, Debug)]
pub struct Clashes {
    found: [Option<(Clash, Token)>; MOST_CLASHES],
    count: usize,
}

impl Clashes {
    /// Runs every rule over `declared`. What stands in for a declaration in error breaks none.
    #[must_use]
    pub const fn of(declared: &Declared) -> Self {
        let mut clashes = Self { found: [None; MOST_CLASHES], count: 0 };
        if !declared.stands_in() {
            clashes.blocks(declared);
            clashes.layer(declared, None);
            clashes.ranges(declared, declared);
        }
        clashes
    }

    /// For the expansion of `pruning!`: stops the build where token `index` broke a rule, and says which.
    ///
    /// # Panics
    /// Where it did.
    #[track_caller]
    pub const fn refuse(&self, index: u32) {
        let mut said = Text::new("", &[]);
        let mut at = 0;
        while at < self.count {
            if let Some((clash, token)) = &self.found[at]
                && token.index == index
            {
                said.line(&clash.message());
            }
            at += 1;
        }
        if !said.as_str().is_empty() {
            panic!("{}", said.as_str());
        }
    }

    /// Every broken rule and its token.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Clash, Token)> {
        self.found.into_iter().flatten()
    }

    /// Notes `clash` at the one of `tokens` that says most closely what the layer does, the first among equals. Where
    /// all of them are inherited from another declaration, it was noted there.
    const fn broken(&mut self, clash: Clash, tokens: &[Token]) {
        let mut token = tokens[0];
        let mut at = 1;
        while at < tokens.len() {
            if tokens[at].depth > token.depth {
                token = tokens[at];
            }
            at += 1;
        }
        if token.depth > 0 && self.count < MOST_CLASHES && !self.is_known(&clash, token) {
            self.found[self.count] = Some((clash, token));
            self.count += 1;
        }
    }

    /// Whether the rest of the pipeline, or the other phase, has broken the same rule at the same token.
    const fn is_known(&self, clash: &Clash, token: Token) -> bool {
        let mut at = 0;
        while at < self.count {
            if let Some((known, other)) = &self.found[at]
                && other.index == token.index
                && known.message().same(&clash.message())
            {
                return true;
            }
            at += 1;
        }
        false
    }

    /// What can be wrong with blocks as they were written.
    const fn blocks(&mut self, declared: &Declared) {
        let blocks = slice(&declared.blocks);
        let mut at = 0;
        while at < blocks.len() {
            let block = &blocks[at];
            if !block.inherited {
                self.dense(block);
                if let (Some(range), None) = (&block.layers, block.phase) {
                    self.range(range, blocks.split_at(at).0);
                }
            }
            at += 1;
        }
    }

    const fn dense(&mut self, block: &Block) {
        let Some(dense) = block.dense.given() else {
            return;
        };
        let token = Token { depth: 1, ..dense.token };
        if let [(slot, _), ..] = slice(&block.fields) {
            self.broken(Clash::DenseWithWords { word: slot.word() }, &[token]);
        } else if !slice(&block.stages).is_empty() {
            self.broken(Clash::DenseWithWords { word: "stage" }, &[token]);
        }
    }

    const fn range(&mut self, range: &Range, above: &[Block]) {
        let (Some(first), Some(last)) = (range.first.given(), range.last.value()) else {
            return;
        };
        let token = Token { depth: 1, ..first.token };
        let first = first.value;
        if last < first {
            self.broken(Clash::BackwardsRange { first, last }, &[token]);
        }
        let mut at = 0;
        while at < above.len() {
            if let Block { layers: Some(other), phase: None, inherited: false, .. } = &above[at]
                && let Some((other_first, other_last)) = other.known()
                && first <= other_last
                && other_first <= last
            {
                self.broken(Clash::OverlappingLayers { first, last, other_first, other_last }, &[token]);
            }
            at += 1;
        }
    }

    /// Checks one layer of everything that `layers` sets apart, in `part` and what it inherits from.
    const fn ranges(&mut self, declared: &Declared, part: &Declared) {
        if let Some(parent) = part.parent {
            self.ranges(declared, parent);
        }
        let blocks = slice(&part.blocks);
        let mut at = 0;
        while at < blocks.len() {
            if let Block { layers: Some(range), phase: None, .. } = &blocks[at] {
                let [first, after] = range.ends();
                self.layer(declared, Some(first));
                self.layer(declared, Some(after));
            }
            at += 1;
        }
    }

    /// Runs every rule over `layer` in both phases.
    const fn layer(&mut self, declared: &Declared, layer: Option<u32>) {
        let mut prefill = declared.words(layer, Phase::Prefill);
        let mut decode = declared.words(layer, Phase::Decode);
        self.phase(&mut prefill);
        self.phase(&mut decode);
        self.one_cache(&prefill, "prefill", &decode, "decode");
        self.one_cache(&decode, "decode", &prefill, "prefill");
    }

    const fn one_cache(&mut self, rotated: &Words, name: &'static str, other: &Words, other_name: &'static str) {
        let token = match (rotated.dense, rotated.get(Slot::AttendRope)) {
            (Some(token), _) if token.index != Token::WRONG.index => token,
            (None, Field::Given(mode)) if is_rotated(mode) => mode.token,
            _ => return,
        };
        if let (None, Field::Given(mode)) = (other.dense, other.get(Slot::AttendRope))
            && !is_rotated(mode)
        {
            let attend = AttendRope::WORDS[mode.value as usize];
            let dense = rotated.dense.is_some();
            let clash = Clash::CachesDiffer { rotated: name, dense, other: other_name, attend };
            self.broken(clash, &[token, mode.token]);
        }
    }

    const fn phase(&mut self, words: &mut Words) {
        if words.dense.is_some() {
            return;
        }
        if let Some(stage) = words.excess {
            self.broken(Clash::TooManyStages { most: words.count as u32 }, &[stage]);
        }
        self.presence(words);
        self.query_block(words.get(Slot::QueryBlock));
        let mut at = 0;
        while at < words.count {
            let stage = words.stages[at];
            self.query_block(stage.get(StageSlot::QueryBlock));
            if at == 0 {
                self.first_stage(&stage);
            } else {
                self.later_stage(words, &words.stages[at - 1], &stage);
            }
            self.query_stride(words, &stage);
            self.scoring(words, &stage);
            at += 1;
        }
        self.sink_and_window(words);
        if words.count == 0 {
            self.without_stages(words);
        } else {
            self.last_cut(words, &words.stages[words.count - 1]);
            self.rotated_cache("scan", words.get(Slot::Scan), words);
        }
    }

    /// Every word that has to be there is; one that is not is noted once and counts as wrong from then on.
    const fn presence(&mut self, words: &mut Words) {
        let here = words.here;
        self.needed(words, Slot::Sink, SINK, Place::Pipeline, &[here]);
        self.needed(words, Slot::Window, WINDOW, Place::Pipeline, &[here]);
        match words.get(Slot::Rope) {
            Field::Given(rope) => {
                self.needed(words, Slot::AttendRope, ATTEND_AT, Place::Rope, &[rope.token]);
                if words.count > 0 {
                    let stage = words.stages[words.count - 1].here;
                    self.needed(words, Slot::Scan, SCAN, Place::Rope, &[rope.token, stage]);
                }
            }
            _ => {
                let rope = if words.count > 0 { POSITIONS } else { ATTEND_POSITIONS };
                self.needed(words, Slot::Rope, rope, Place::Pipeline, &[here]);
                words.set(Slot::AttendRope, Field::Wrong);
                words.set(Slot::Scan, Field::Wrong);
            }
        }
        if words.count > 0 {
            let stage = words.stages[words.count - 1].here;
            match words.get(Slot::Attend) {
                Field::Given(attend) => self.needed(words, Slot::Keep, KEEP, Place::Attend, &[attend.token, stage]),
                _ => self.needed(words, Slot::Keep, CUT, Place::Pipeline, &[stage]),
            }
        }
        let mut at = 0;
        while at < words.count {
            let stage = &mut words.stages[at];
            if stage.get(StageSlot::Chunk).is_absent() {
                let Word { name, example, .. } = CHUNK;
                self.broken(Clash::MissingWord { word: name, place: Place::Stage, example }, &[stage.here]);
                stage.set(StageSlot::Chunk, Field::Wrong);
            }
            at += 1;
        }
    }

    const fn needed(&mut self, words: &mut Words, slot: Slot, word: Word, place: Place, tokens: &[Token]) {
        if words.get(slot).is_absent() {
            let Word { name, example, .. } = word;
            self.broken(Clash::MissingWord { word: name, place, example }, tokens);
            words.set(slot, Field::Wrong);
        }
    }

    const fn query_block(&mut self, field: Field) {
        if let Field::Given(block) = field
            && !SEGMENT.is_multiple_of(block.value)
        {
            let ways = Ways::divisors("query_block", block.value, SEGMENT);
            let clash = Clash::QueryBlockNotWhole { query_block: block.value, segment: SEGMENT, ways };
            self.broken(clash, &[block.token]);
        }
    }

    const fn first_stage(&mut self, stage: &StageWords) {
        if let Field::Given(keep) = stage.get(StageSlot::Keep) {
            self.broken(Clash::FirstStageWithKeep { keep: keep.value }, &[keep.token]);
        }
    }

    const fn later_stage(&mut self, words: &Words, before: &StageWords, stage: &StageWords) {
        let chunk_before = before.get(StageSlot::Chunk);
        match (stage.get(StageSlot::Keep), chunk_before) {
            (Field::Absent, _) => {
                let chunk = match chunk_before {
                    Field::Given(chunk) => chunk.value,
                    _ => 256,
                };
                self.broken(Clash::LaterStageWithoutKeep { example: chunk * 128 }, &[stage.here]);
            }
            (Field::Given(keep), Field::Given(chunk)) if !keep.value.is_multiple_of(chunk.value) => {
                let ways = Ways::multiples("keep", keep.value, chunk.value, 1, MOST_TOKENS);
                let clash = Clash::KeepNotMultiple { keep: keep.value, chunk: chunk.value, ways };
                self.broken(clash, &[keep.token, chunk.token]);
            }
            _ => {}
        }
        if let (Field::Given(chunk), Field::Given(before)) = (stage.get(StageSlot::Chunk), chunk_before)
            && !before.value.is_multiple_of(chunk.value)
        {
            let ways = Ways::divisors("chunk", chunk.value, before.value);
            let clash = Clash::ChunkDoesNotDivide { chunk: chunk.value, before: before.value, ways };
            self.broken(clash, &[chunk.token, before.token]);
        }
        if let (Some(block), Some(before)) = (block_of(words, stage), block_of(words, before))
            && !before.value.is_multiple_of(block.value)
        {
            let ways = Ways::divisors("query_block", block.value, before.value);
            let clash = Clash::QueryBlockDoesNotDivide { query_block: block.value, before: before.value, ways };
            let tokens = match stage.get(StageSlot::QueryBlock) {
                Field::Given(_) => [block.token, before.token],
                _ => [before.token, block.token],
            };
            self.broken(clash, &tokens);
        }
    }

    const fn query_stride(&mut self, words: &Words, stage: &StageWords) {
        if let (Field::Given(stride), Some(block)) = (stage.get(StageSlot::QueryStride), block_of(words, stage))
            && !block.value.is_multiple_of(stride.value)
        {
            let ways = Ways::divisors("query_stride", stride.value, block.value);
            let clash = Clash::StrideDoesNotDivide { query_stride: stride.value, query_block: block.value, ways };
            self.broken(clash, &[stride.token, block.token]);
        }
    }

    const fn scoring(&mut self, words: &Words, stage: &StageWords) {
        if let Field::Given(chosen) = stage.get(StageSlot::Representative)
            && !matches!(Representative::ALL[chosen.value as usize], Representative::Halving(_))
        {
            let representative = Representative::WORDS[chosen.value as usize];
            let of_halving = [
                ("probe", Probe::WORDS, stage.get(StageSlot::Probe)),
                ("chunk_score", ChunkScore::WORDS, stage.get(StageSlot::ChunkScore)),
                ("descent", Descent::WORDS, stage.get(StageSlot::Descent)),
            ];
            let mut at = 0;
            while at < of_halving.len() {
                if let (word, modes, Field::Given(mode)) = of_halving[at] {
                    let clash = Clash::NothingIsHalved { word, value: modes[mode.value as usize], representative };
                    self.broken(clash, &[mode.token, chosen.token]);
                }
                at += 1;
            }
            let rope = match stage.get(StageSlot::Rope) {
                Field::Absent => words.get(Slot::Scan),
                own => own,
            };
            if let Field::Given(rope) = rope
                && matches!(Representative::ALL[chosen.value as usize], Representative::Mean | Representative::MinMax)
                && matches!(ScanRope::ALL[rope.value as usize], ScanRope::DynamicExtend | ScanRope::SelfExtend)
            {
                let rope_word = ScanRope::WORDS[rope.value as usize];
                let clash = Clash::SummaryOfMovingKeys { representative, rope: rope_word };
                self.broken(clash, &[chosen.token, rope.token]);
            }
        }
        self.rotated_cache("rope", stage.get(StageSlot::Rope), words);
    }

    const fn rotated_cache(&mut self, word: &'static str, scan: Field, words: &Words) {
        if let (Field::Given(scan), Field::Given(attend)) = (scan, words.get(Slot::AttendRope))
            && is_rotated(attend)
            && !matches!(ScanRope::ALL[scan.value as usize], ScanRope::None)
        {
            let clash = Clash::ScanOfRotatedCache { word, scan: ScanRope::WORDS[scan.value as usize] };
            self.broken(clash, &[scan.token, attend.token]);
        }
    }

    const fn sink_and_window(&mut self, words: &Words) {
        if words.count == 0 {
            return;
        }
        let last = words.stages[words.count - 1].get(StageSlot::Chunk);
        if let (Field::Given(sink), Field::Given(chunk)) = (words.get(Slot::Sink), last)
            && !sink.value.is_multiple_of(chunk.value)
        {
            let ways = Ways::multiples("sink", sink.value, chunk.value, 0, MOST_TOKENS);
            let clash = Clash::SinkNotMultiple { sink: sink.value, chunk: chunk.value, ways };
            self.broken(clash, &[sink.token, chunk.token]);
        }
        // The scan admits a chunk up to `window − chunk` before the query, and a probe reads up to `chunk − 1` into it.
        let first = words.stages[0].get(StageSlot::Chunk);
        if let (Field::Given(window), Field::Given(chunk)) = (words.get(Slot::Window), first) {
            let least = 2 * chunk.value - 1;
            if window.value < least {
                let clash = Clash::WindowTooShort { window: window.value, chunk: chunk.value, least };
                self.broken(clash, &[window.token, chunk.token]);
            }
        }
    }

    const fn without_stages(&mut self, words: &Words) {
        if let Field::Given(keep) = words.get(Slot::Keep) {
            self.broken(Clash::LastCutWithoutStages { keep: keep.value }, &[keep.token]);
        }
        if let Field::Given(scan) = words.get(Slot::Scan) {
            let clash = Clash::ScanWithoutStages { scan: ScanRope::WORDS[scan.value as usize] };
            self.broken(clash, &[scan.token]);
        }
        if let Field::Given(ranking) = words.get(Slot::Ranking) {
            let clash = Clash::RankingWithoutStages { ranking: Ranking::WORDS[ranking.value as usize] };
            self.broken(clash, &[ranking.token]);
        }
    }

    const fn last_cut(&mut self, words: &Words, last: &StageWords) {
        if let (Field::Given(keep), Field::Given(chunk)) = (words.get(Slot::Keep), last.get(StageSlot::Chunk))
            && !keep.value.is_multiple_of(chunk.value)
        {
            let ways = Ways::multiples("keep", keep.value, chunk.value, 1, MOST_TOKENS);
            let clash = Clash::LastCutNotMultiple { keep: keep.value, chunk: chunk.value, ways };
            self.broken(clash, &[keep.token, chunk.token]);
        }
    }
}

/// Whether keys that are attended to at positions `mode` are cached rotated.
const fn is_rotated(mode: Given) -> bool {
    matches!(AttendRope::ALL[mode.value as usize], AttendRope::None)
}

/// Queries of a block of `stage`, of its own or those of the pipeline, unless they are in error already.
pub(crate) const fn block_of(words: &Words, stage: &StageWords) -> Option<Given> {
    let block = match (stage.get(StageSlot::QueryBlock), words.get(Slot::QueryBlock)) {
        (Field::Absent, Field::Absent) => Given { value: QUERY_BLOCK, token: Token::ELSEWHERE },
        (Field::Absent, Field::Given(block)) | (Field::Given(block), _) => block,
        _ => return None,
    };
    if SEGMENT.is_multiple_of(block.value) { Some(block) } else { None }
}
