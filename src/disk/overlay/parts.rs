//! How a request on an overlay is cut into requests on its top and its base, and put together again.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::GuestAddress;

use super::map::{BLOCK, State};
use super::{Done, Overlay, Request};
use crate::memory::{Buffers, Pages, allocate};

/// A request that is under way in parts. Its place in the slab is in the low half of their tags, the number of
/// a [`Fill`] in the high half (0: none).
pub struct Parent {
    tag: u64,
    /// The request, unless it was passed on whole and comes back so.
    whole: Option<Request>,
    /// Parts not finished yet.
    left: usize,
    error: Option<io::Error>,
    /// What the map says when all went well.
    changes: Vec<(Range<u64>, State)>,
    /// Blocks that nobody else may change meanwhile.
    held: Range<u64>,
    fills: Vec<Fill>,
}

/// A block that is written in part and not here yet: it is completed in memory first.
struct Fill {
    block: u64,
    /// Where in the block the new bytes begin, and how many they are.
    at: usize,
    len: usize,
    /// The new bytes; `None` for zeroes.
    new: Option<Buffers>,
}

const FILL: u32 = 32;

fn blocks(offset: u64, end: u64) -> Range<u64> {
    offset / BLOCK..end.div_ceil(BLOCK)
}

impl Overlay {
    fn parent(&mut self, tag: u64, whole: Option<Request>, held: Range<u64>) -> u64 {
        let parent =
            Parent { tag, whole, left: 0, error: None, changes: Vec::new(), held, fills: Vec::new() };
        self.under_way.insert(parent) as u64
    }

    /// Counts a part of the request in `slot`.
    fn part(&mut self, slot: u64) {
        if let Some(parent) = self.under_way.get_mut(slot as usize) {
            parent.left += 1;
        }
    }

    fn part_to_top(&mut self, slot: u64, request: Request) {
        self.part(slot);
        self.ask_top(slot, request);
    }

    pub(super) fn read(&mut self, tag: u64, offset: u64, buffers: Buffers) {
        let end = offset + buffers.len() as u64;
        let wanted = blocks(offset, end);
        let (state, next) = self.map.run(wanted.start, wanted.end);
        if next >= wanted.end {
            // All in one place: the usual case.
            if state == State::Zero {
                buffers.zero_at(0, buffers.len());
                return self.done.push(Done {
                    tag,
                    request: Request::Read { offset, buffers },
                    result: Ok(()),
                });
            }
            let slot = self.parent(tag, None, 0..0);
            self.part(slot);
            let request = Request::Read { offset, buffers };
            return match state {
                State::Data => self.ask_top(slot, request),
                _ => self.ask_base(slot, request),
            };
        }
        let view = buffers.part(0, buffers.len());
        let slot = self.parent(tag, Some(Request::Read { offset, buffers }), 0..0);
        // One part more than there are, so that it is not over before all are on their way.
        self.part(slot);
        let mut block = wanted.start;
        while block < wanted.end {
            let (state, next) = self.map.run(block, wanted.end);
            let (from, to) = ((block * BLOCK).max(offset), (next * BLOCK).min(end));
            let (skip, len) = ((from - offset) as usize, (to - from) as usize);
            match state {
                State::Zero => {
                    view.zero_at(skip, len);
                }
                _ => {
                    self.part(slot);
                    let request = Request::Read { offset: from, buffers: view.part(skip, len) };
                    match state {
                        State::Data => self.ask_top(slot, request),
                        _ => self.ask_base(slot, request),
                    }
                }
            }
            block = next;
        }
        self.part_done(slot, Ok(()), None);
    }

    /// Starts a write, discard or write-zeroes, or lets it wait for another change of the same blocks.
    pub(super) fn change(&mut self, tag: u64, request: Request) {
        let (offset, len) = match request {
            Request::Write { offset, ref buffers } => (offset, buffers.len() as u64),
            Request::Discard { offset, len } | Request::WriteZeroes { offset, len, .. } => (offset, len),
            Request::Read { .. } | Request::Flush => return,
        };
        let touched = blocks(offset, offset + len);
        let taken = |parent: &Parent| parent.held.start < touched.end && touched.start < parent.held.end;
        if self.under_way.iter().any(taken) {
            return self.waiting.push_back((tag, request));
        }
        match request {
            Request::Write { offset, buffers } => self.write(tag, offset, buffers, touched),
            request => self.erase(tag, request, offset..offset + len, touched),
        }
    }

    fn write(&mut self, tag: u64, offset: u64, buffers: Buffers, touched: Range<u64>) {
        let end = offset + buffers.len() as u64;
        if self.map.is_all_data(touched.clone()) {
            let slot = self.parent(tag, None, 0..0);
            return self.part_to_top(slot, Request::Write { offset, buffers });
        }
        let is_here = |block: u64| self.map.run(block, block + 1).0 == State::Data;
        let (first, last) = (touched.start, touched.end - 1);
        let fill_head = !offset.is_multiple_of(BLOCK) && !is_here(first);
        let ragged_end = !end.is_multiple_of(BLOCK) && end != self.geometry.size;
        let fill_tail = ragged_end && !is_here(last) && !(fill_head && first == last);
        let mut middle = offset..end;
        if fill_head {
            middle.start = end.min((first + 1) * BLOCK);
        }
        if fill_tail {
            middle.end = (last * BLOCK).max(offset);
        }
        let whole = !fill_head && !fill_tail;
        let view = buffers.part(0, if whole { 0 } else { buffers.len() });
        let mut request = Some(Request::Write { offset, buffers });
        let slot = self.parent(tag, if whole { None } else { request.take() }, touched.clone());
        if let Some(parent) = self.under_way.get_mut(slot as usize) {
            parent.changes.push((touched, State::Data));
        }
        if let Some(request) = request {
            return self.part_to_top(slot, request);
        }
        self.part(slot);
        let piece = |from: u64, to: u64| view.part((from - offset) as usize, (to - from) as usize);
        if middle.start < middle.end {
            let buffers = piece(middle.start, middle.end);
            self.part_to_top(slot, Request::Write { offset: middle.start, buffers });
        }
        if fill_head {
            let to = end.min((first + 1) * BLOCK);
            self.fill(slot, offset..to, Some(piece(offset, to)));
        }
        if fill_tail {
            let from = (last * BLOCK).max(offset);
            self.fill(slot, from..end, Some(piece(from, end)));
        }
        self.part_done(slot, Ok(()), None);
    }

    /// Discards or zeroes `range`: whole blocks become zero in the map, the rest is written.
    fn erase(&mut self, tag: u64, request: Request, range: Range<u64>, touched: Range<u64>) {
        let to_the_end = range.end == self.geometry.size;
        let whole_end = if to_the_end { touched.end } else { range.end / BLOCK };
        let whole = range.start.div_ceil(BLOCK)..whole_end;
        let must_be_zero = matches!(request, Request::WriteZeroes { .. });
        let slot = self.parent(tag, Some(request), touched);
        self.part(slot);
        if whole.start < whole.end {
            if self.map.has_data(whole.clone()) {
                let (offset, len) = (whole.start * BLOCK, (whole.end - whole.start) * BLOCK);
                self.part_to_top(slot, Request::Discard { offset, len });
            }
            if let Some(parent) = self.under_way.get_mut(slot as usize) {
                parent.changes.push((whole.clone(), State::Zero));
            }
        }
        let edges = if whole.start <= whole.end {
            [range.start..whole.start * BLOCK, range.end.min(whole.end * BLOCK)..range.end]
        } else {
            // All inside one block.
            [range.clone(), 0..0]
        };
        for edge in edges.into_iter().filter(|edge| must_be_zero && edge.start < edge.end) {
            let block = edge.start / BLOCK;
            match self.map.run(block, block + 1).0 {
                State::Zero => {}
                State::Data => {
                    let (offset, len) = (edge.start, edge.end - edge.start);
                    self.part_to_top(slot, Request::WriteZeroes { offset, len, unmap: false });
                }
                State::Base => {
                    self.fill(slot, edge, None);
                    if let Some(parent) = self.under_way.get_mut(slot as usize) {
                        parent.changes.push((block..block + 1, State::Data));
                    }
                }
            }
        }
        self.part_done(slot, Ok(()), None);
    }

    /// Completes the block that `range` lies in, then writes it to the top.
    fn fill(&mut self, slot: u64, range: Range<u64>, new: Option<Buffers>) {
        self.part(slot);
        let block = range.start / BLOCK;
        let len = BLOCK.min(self.geometry.size - block * BLOCK) as usize;
        let scratch = match self.scratch(len) {
            Ok(scratch) => scratch,
            Err(error) => return self.part_done(slot, Err(error), None),
        };
        let state = self.map.run(block, block + 1).0;
        let Some(parent) = self.under_way.get_mut(slot as usize) else { return };
        let at = (range.start - block * BLOCK) as usize;
        parent.fills.push(Fill { block, at, len: (range.end - range.start) as usize, new });
        let tag = slot | (parent.fills.len() as u64) << FILL;
        if state == State::Zero {
            scratch.zero_at(0, len);
            self.write_fill(tag, scratch);
        } else {
            self.ask_base(tag, Request::Read { offset: block * BLOCK, buffers: scratch });
        }
    }

    /// The block is complete but for the new bytes.
    fn write_fill(&mut self, tag: u64, scratch: Buffers) {
        let (slot, number) = (tag as u32 as usize, (tag >> FILL) as usize);
        let Some(fill) = self.under_way.get_mut(slot).and_then(|parent| parent.fills.get(number - 1)) else {
            return;
        };
        match &fill.new {
            None => drop(scratch.zero_at(fill.at, fill.len)),
            Some(new) => {
                let mut bytes = [0; BLOCK as usize];
                let len = new.read_at(0, &mut bytes);
                scratch.write_at(fill.at, &bytes[..len]);
            }
        }
        let offset = fill.block * BLOCK;
        self.ask_top(tag, Request::Write { offset, buffers: scratch });
    }

    /// Memory for one block.
    fn scratch(&mut self, len: usize) -> io::Result<Buffers> {
        match self.scratch.pop() {
            Some(scratch) if scratch.len() == len => Ok(scratch),
            _ => {
                let memory =
                    allocate(&[(GuestAddress(0), BLOCK)], Pages::Transparent).map_err(io::Error::other)?;
                let mut scratch = Buffers::new(&Arc::new(memory));
                scratch.push(GuestAddress(0), len).map_err(io::Error::other)?;
                Ok(scratch)
            }
        }
    }

    /// The top or the base has finished a part.
    pub(super) fn settle(&mut self, Done { tag, request, result }: Done) {
        let slot = u64::from(tag as u32);
        if tag >> FILL == 0 {
            return self.part_done(slot, result, Some(request));
        }
        match request {
            Request::Read { buffers, .. } if result.is_ok() => return self.write_fill(tag, buffers),
            Request::Read { buffers, .. } | Request::Write { buffers, .. } => self.scratch.push(buffers),
            _ => {}
        }
        self.part_done(slot, result, None);
    }

    /// One part less. After the last the map changes and the request is finished.
    fn part_done(&mut self, slot: u64, result: io::Result<()>, request: Option<Request>) {
        let Some(parent) = self.under_way.get_mut(slot as usize) else { return };
        if let Err(error) = result {
            parent.error.get_or_insert(error);
        }
        parent.left -= 1;
        if parent.left > 0 {
            return;
        }
        let Some(parent) = self.under_way.remove(slot as usize) else { return };
        if parent.error.is_none() {
            for (blocks, state) in parent.changes {
                self.map.set(blocks, state);
            }
        }
        let request = parent.whole.or(request).unwrap_or(Request::Flush);
        self.done.push(Done { tag: parent.tag, request, result: parent.error.map_or(Ok(()), Err) });
        if !parent.held.is_empty() {
            for (tag, request) in std::mem::take(&mut self.waiting) {
                self.change(tag, request);
            }
        }
    }
}
