//! fragment: pieces of larger datagrams go where their first piece goes, none of them put together (virtual
//! reassembly).
//!
//! A first fragment has ports: to the stages before this one it is a packet like any other. What became of it is noted
//! here, under its datagram's name, and later fragments do likewise: on with the first's flow, to the host, or no
//! further. One that comes before its first is held by its worker for a while ([`Verdict::Hold`]). What a later
//! fragment says about headers is never believed: none may reach into what the first has shown.

use crate::batch::{Answer, Batch, Meta, flags};
use crate::io::frame::Frame;
use crate::path::{Context, Waiting};
use crate::stages::conntrack;
use crate::tables::flows::FlowTable;
use crate::tables::flows::line::{Family, V4, V6};
use crate::tables::fragments::{Fate, Piece};
use crate::verdict::{DropReason, Verdict};

/// Sees every fragment, after the first ones of datagrams have been decided about.
#[cold]
pub fn run(batch: &mut Batch, cx: &mut Context<'_>, waiting: &mut Waiting) {
    let Waiting { fragments, known, answers, keyed, .. } = waiting;
    // First pieces first: those of one datagram may come in any order.
    for index in fragments.iter().filter(|index| !batch.meta[*index].has(flags::LATER)) {
        note(&batch.frames[index], &batch.meta[index], cx);
    }
    for index in fragments.iter() {
        let (frame, meta) = (&batch.frames[index], &mut batch.meta[index]);
        if !meta.has(flags::LATER) {
            continue;
        }
        match follow(frame, meta, cx) {
            Ok(Next::Forward(hash)) => {
                keyed.set_hash(index, hash);
                known.push(index);
            }
            Ok(Next::Echo) => {
                meta.answer(Answer::Echo);
                answers.push(index);
            }
            Ok(Next::End(verdict)) => meta.verdict = verdict,
            Err(reason) => meta.drop(reason),
        }
    }
}

/// What becomes of a later fragment.
enum Next {
    /// It belongs to a flow; the hash is of the flow's key.
    Forward(u64),
    /// It is part of an echo request that is answered here.
    Echo,
    /// This.
    End(Verdict),
}

/// Notes what has become of a first fragment.
fn note(frame: &Frame, meta: &Meta, cx: &Context<'_>) {
    // Before forward has translated anything: the datagram still has the name that its others have.
    let Some(piece) = Piece::of(frame, meta) else { return };
    let fate = if meta.verdict == Verdict::Host {
        Fate::Host
    } else if meta.verdict == Verdict::Drop || meta.has(flags::REFUSED) {
        Fate::Stopped
    } else if meta.answer == Answer::Echo {
        Fate::Echoed
    } else {
        let key = &meta.key;
        Fate::Flow { sport: key.sport, dport: key.dport, proto: key.proto, end: (piece.len / 8) as u16 }
    };
    cx.fragments.note(&piece.datagram, fate, cx.now);
}

fn follow(frame: &Frame, meta: &mut Meta, cx: &mut Context<'_>) -> Result<Next, DropReason> {
    let piece = Piece::of(frame, meta).ok_or(DropReason::BadFragment)?;
    match cx.fragments.fate(&piece.datagram, cx.now) {
        None => wait(&piece, meta, cx),
        Some(Fate::Stopped) => Err(DropReason::FragmentRefused),
        Some(Fate::Host) => Ok(Next::End(Verdict::Host)),
        Some(Fate::Echoed) => Ok(Next::Echo),
        Some(Fate::Flow { end, .. }) if piece.offset < end => Err(DropReason::FragmentOverlap),
        Some(Fate::Flow { sport, dport, proto, .. }) => {
            (meta.key.sport, meta.key.dport, meta.key.proto) = (sport, dport, proto);
            if meta.has(flags::V6) {
                join::<V6>(meta, frame.len(), cx, cx.flows_v6)
            } else {
                join::<V4>(meta, frame.len(), cx, cx.flows_v4)
            }
        }
    }
}

/// The first fragment has not come yet.
fn wait(piece: &Piece, meta: &mut Meta, cx: &Context<'_>) -> Result<Next, DropReason> {
    // Never 0, which stands for one that has not waited yet.
    let now = cx.now.tick.max(1);
    let since = if meta.flow == 0 { now } else { meta.flow };
    if now.wrapping_sub(since) > piece.datagram.lifetime() {
        return Err(DropReason::FragmentTimeout);
    }
    meta.flow = since;
    Ok(Next::End(Verdict::Hold))
}

/// On with the flow of the first fragment. Of another with the same name in the meantime nothing is known.
fn join<F: Family>(
    meta: &mut Meta,
    frame_len: usize,
    cx: &mut Context<'_>,
    table: &FlowTable<F>,
) -> Result<Next, DropReason> {
    let hash = table.hash(&meta.key);
    let flow = table.lookup(hash, &meta.key).ok_or(DropReason::FragmentRefused)?;
    conntrack::follow(flow, meta, frame_len, cx, table).map_err(conntrack::Halt::reason)?;
    Ok(Next::Forward(hash))
}
