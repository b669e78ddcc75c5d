//! A packet that is too large for its next hop, and may be cut, becomes several that are not (RFC 791, 3.2).

use crate::batch::{Meta, PortId, Spares};
use crate::io::frame::Frame;
use crate::path::Context;
use crate::stages::forward;
use crate::tables::route::NextHop;
use crate::verdict::DropReason;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::{view, view_mut};

/// Where the pieces go.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Their next hop.
    pub next: NextHop,
    /// The port that it is reached by.
    pub port: PortId,
    /// The largest packet that goes that way whole.
    pub mtu: u16,
    /// Hash of the flow's key.
    pub hash: u64,
}

/// Cuts an IPv4 packet that is translated already, and puts the headers of its next hop in front of each piece. The
/// first stays in `frame`, the others are in spare frames.
///
/// # Errors
/// The reason why it cannot be cut, or cannot go there.
#[cold]
pub fn cut(
    frame: &mut Frame,
    meta: &Meta,
    way: &Way,
    spares: &mut Spares,
    cx: &Context<'_>,
) -> Result<(), DropReason> {
    let l3 = usize::from(meta.l3);
    let header: &Ipv4 = view(frame.bytes(), l3).ok_or(DropReason::MalformedIpv4)?;
    let (header_len, before) = (header.header_len(), header.flags_offset());
    let start = l3 + header_len;
    let payload = frame.len().checked_sub(start).ok_or(DropReason::MalformedIpv4)?;
    let room = usize::from(way.mtu).saturating_sub(header_len) & !7;
    if room == 0 {
        return Err(DropReason::TooBig);
    }
    let more = payload.div_ceil(room).saturating_sub(1);
    if spares.free.len() < more {
        return Err(DropReason::NoSpareFrame);
    }
    let made = spares.made.len();
    for at in (room..payload).step_by(room) {
        let Some(mut piece) = spares.free.pop() else { return Err(DropReason::NoSpareFrame) };
        let sent = copy(frame, &mut piece, (l3, header_len, before), at, room.min(payload - at))
            .and_then(|()| forward::send(&mut piece, &Meta { l3: 0, ..*meta }, way.next, way.hash, cx));
        if let Err(reason) = sent {
            // All or none.
            spares.free.push(piece);
            spares.free.extend(spares.made.drain(made..).map(|(piece, _)| piece));
            return Err(reason);
        }
        spares.made.push((piece, way.port));
    }
    frame.truncate(start + room);
    finish(frame.bytes_mut(), l3, header_len, before | ipv4::MF)?;
    forward::send(frame, meta, way.next, way.hash, cx)
}

/// Makes `piece` the part of the packet that begins at byte `at` of its payload.
fn copy(
    frame: &Frame,
    piece: &mut Frame,
    (l3, header_len, before): (usize, usize, u16),
    at: usize,
    len: usize,
) -> Result<(), DropReason> {
    let (header, payload) = frame.bytes()[l3..].split_at(header_len);
    piece.reset();
    if !piece.resize(header_len + len) {
        return Err(DropReason::NoHeadroom);
    }
    let (to_header, to_payload) = piece.bytes_mut().split_at_mut(header_len);
    to_header.copy_from_slice(header);
    to_payload.copy_from_slice(&payload[at..at + len]);
    keep_copied_options(&mut to_header[ipv4::MIN_LEN..]);
    let is_last = at + len == payload.len();
    let more = if is_last { before & ipv4::MF } else { ipv4::MF };
    let offset = (before & ipv4::OFFSET_MASK) + (at / 8) as u16;
    finish(piece.bytes_mut(), 0, header_len, offset | more)
}

/// The header of a piece: its length, place and checksum.
fn finish(bytes: &mut [u8], l3: usize, header_len: usize, flags_offset: u16) -> Result<(), DropReason> {
    let len = bytes.len() - l3;
    let header: &mut Ipv4 = view_mut(bytes, l3).ok_or(DropReason::MalformedIpv4)?;
    header.total_len = (len as u16).to_be_bytes();
    header.flags_offset = flags_offset.to_be_bytes();
    forward::fix_ipv4_checksum(bytes, l3, header_len);
    Ok(())
}

/// Blanks those options that only the first piece has (RFC 791, 3.1).
fn keep_copied_options(mut options: &mut [u8]) {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const COPIED: u8 = 0x80;
    while let [kind, rest @ ..] = options {
        let len = match *kind {
            END => return,
            NOTHING => 1,
            _ => usize::from(rest.first().copied().unwrap_or(0)),
        };
        // What is no list of options is passed on as it is.
        if len == 0 || len > options.len() {
            return;
        }
        let (option, rest) = options.split_at_mut(len);
        if option[0] & COPIED == 0 {
            option.fill(NOTHING);
        }
        options = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_kept_as_their_copied_flag_says() {
        let kept = |options: &[u8]| {
            let mut options = options.to_vec();
            keep_copied_options(&mut options);
            options
        };
        // Record route is not copied, loose source route is.
        assert_eq!(kept(&[7, 3, 4, 0x83, 3, 4, 0, 0]), [1, 1, 1, 0x83, 3, 4, 0, 0]);
        assert_eq!(kept(&[1, 7, 3, 0, 0, 0, 0, 0]), [1, 1, 1, 1, 0, 0, 0, 0]);
        // Not well-formed: too long, without a length, of no length.
        assert_eq!(kept(&[7, 9, 0, 0]), [7, 9, 0, 0]);
        assert_eq!(kept(&[1, 1, 1, 7]), [1, 1, 1, 7]);
        assert_eq!(kept(&[7, 0, 1, 1]), [7, 0, 1, 1]);
        assert_eq!(kept(&[7, 1, 1, 1]), [1, 1, 1, 1]);
        assert_eq!(kept(&[]), []);
    }
}
