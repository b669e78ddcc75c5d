//! Datagrams in pieces: cut, as a sender does, and put together, as a receiver does, both plainly.

use crate::check;

/// Cuts the IP packet of a frame into fragments of at most `room` bytes of payload each (a multiple of 8), with this
/// identification.
///
/// # Panics
/// If it is no IP packet without extension headers.
pub fn cut(frame: &[u8], room: usize, id: u32) -> Vec<Vec<u8>> {
    assert!(room.is_multiple_of(8) && room > 0);
    let (link, packet) = frame.split_at(14);
    let v6 = packet[0] >> 4 == 6;
    let header_len = if v6 { 40 } else { usize::from(packet[0] & 0xf) * 4 };
    let (header, payload) = packet.split_at(header_len);
    let count = payload.len().div_ceil(room);
    payload
        .chunks(room)
        .enumerate()
        .map(|(n, piece)| {
            let (mut header, offset, more) = (header.to_vec(), n * room, n + 1 < count);
            let mut extension = Vec::new();
            if v6 {
                extension.extend([header[6], 0]);
                extension.extend((offset as u16 | u16::from(more)).to_be_bytes());
                extension.extend(id.to_be_bytes());
                header[6] = 44;
                header[4..6].copy_from_slice(&((8 + piece.len()) as u16).to_be_bytes());
            } else {
                header[2..4].copy_from_slice(&((header_len + piece.len()) as u16).to_be_bytes());
                header[4..6].copy_from_slice(&(id as u16).to_be_bytes());
                header[6..8].copy_from_slice(&((offset / 8) as u16 | u16::from(more) << 13).to_be_bytes());
                mend(&mut header);
            }
            [link, &header, &extension, piece].concat()
        })
        .collect()
}

/// A datagram that is being put together.
#[derive(Debug, Default)]
struct Pieces {
    head: Vec<u8>,
    /// Offset and bytes.
    parts: Vec<(usize, Vec<u8>)>,
    end: Option<usize>,
}

/// Puts the fragments of one datagram, in any order, together to the frame that [`cut`] was given, but for its
/// don't-fragment bit. Their IPv4 identification is blanked.
///
/// # Errors
/// What is missing, or does not fit.
pub fn join(frames: &[Vec<u8>]) -> Result<Vec<u8>, String> {
    let mut whole = Pieces::default();
    let mut names = Vec::new();
    for frame in frames {
        check::shape(frame)?;
        let packet = &frame[14..];
        let v6 = packet[0] >> 4 == 6;
        let (header_len, start, word, name);
        if v6 {
            if packet[6] != 44 {
                return Err(format!("no fragment header, but {}", packet[6]));
            }
            (header_len, start, word, name) = (40, 48, [packet[42], packet[43]], packet[44..48].to_vec());
        } else {
            header_len = usize::from(packet[0] & 0xf) * 4;
            (start, word, name) = (header_len, [packet[6], packet[7]], packet[4..6].to_vec());
        }
        names.push(name);
        let word = u16::from_be_bytes(word);
        let (offset, more) = if v6 {
            (usize::from(word & !7), word & 1 != 0)
        } else {
            (usize::from(word & 0x1fff) * 8, word & 0x2000 != 0)
        };
        let part = packet[start..].to_vec();
        if more && !part.len().is_multiple_of(8) {
            return Err(format!("{} bytes at {offset}, and more follow", part.len()));
        }
        if !more && whole.end.replace(offset + part.len()).is_some() {
            return Err("two ends".into());
        }
        if offset == 0 {
            whole.head = frame[..14 + header_len].to_vec();
            if v6 {
                whole.head[20] = packet[40];
            }
        }
        whole.parts.push((offset, part));
    }
    names.dedup();
    if names.len() != 1 {
        return Err(format!("several datagrams: {names:?}"));
    }
    whole.parts.sort();
    let mut payload = Vec::new();
    for (offset, part) in whole.parts {
        if offset != payload.len() {
            return Err(format!("{} bytes, and then one at {offset}", payload.len()));
        }
        payload.extend(part);
    }
    if whole.head.is_empty() || whole.end != Some(payload.len()) {
        return Err(format!("no begin or no end: {:?}", whole.end));
    }
    let mut header = whole.head.split_off(14);
    if header[0] >> 4 == 6 {
        header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    } else {
        let len = (header.len() + payload.len()) as u16;
        header[2..4].copy_from_slice(&len.to_be_bytes());
        header[4..8].fill(0);
        mend(&mut header);
    }
    Ok([whole.head, header, payload].concat())
}

/// Makes the checksum of an IPv4 header anew.
pub fn mend(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = check::checksum(&[header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::*;

    #[test]
    fn what_was_cut_is_joined_again() {
        for (from, to) in [("10.0.0.1:1", "10.0.0.2:2"), ("[fd00::1]:1", "[fd00::2]:2")] {
            let whole = udp().from(from).to(to).payload(&[7; 3001]).may_fragment().bytes();
            let mut pieces = cut(&whole, 1000, 9);
            assert_eq!(pieces.len(), 4);
            pieces.reverse();
            assert_eq!(join(&pieces).unwrap(), whole);
            assert!(join(&pieces[1..]).is_err() && join(&pieces[..3]).is_err());
        }
    }
}
