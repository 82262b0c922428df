//! The frames of HTTP/2 that the broker sends, as far as they say that it has refused a stream.

/// The bytes before a frame's payload (RFC 9113, section 4.1).
const HEAD_LENGTH: usize = 9;
/// The bytes of an error code.
const CODE_LENGTH: usize = 4;
/// The type of RST_STREAM (RFC 9113, section 6.4).
const RESET: u8 = 3;
/// The code of a stream that was refused (RFC 9113, section 7).
const REFUSED_STREAM: [u8; CODE_LENGTH] = [0, 0, 0, 7];

/// Follows the frames through the bytes that are sent, regardless of where these are cut.
#[derive(Debug, Default)]
pub(super) struct SentFrames {
    head: [u8; HEAD_LENGTH],
    /// The bytes of the head that were sent.
    have: usize,
    /// The bytes of the payload that are still to be sent.
    left: usize,
    /// The error code of a reset, as far as it was sent.
    code: [u8; CODE_LENGTH],
    code_have: usize,
}

impl SentFrames {
    /// Reads the next bytes, and returns the number of streams that they refuse.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> usize {
        let mut refused = 0;
        while !bytes.is_empty() {
            if self.left == 0 {
                let (head, rest) = bytes.split_at(bytes.len().min(HEAD_LENGTH - self.have));
                self.head[self.have..self.have + head.len()].copy_from_slice(head);
                self.have += head.len();
                bytes = rest;
                if self.have == HEAD_LENGTH {
                    let [a, b, c, ..] = self.head;
                    self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                    (self.have, self.code_have) = (0, 0);
                }
                continue;
            }
            let (payload, rest) = bytes.split_at(bytes.len().min(self.left));
            self.left -= payload.len();
            bytes = rest;
            if self.head[3] == RESET {
                let code = &payload[..payload.len().min(CODE_LENGTH - self.code_have)];
                self.code[self.code_have..self.code_have + code.len()].copy_from_slice(code);
                self.code_have += code.len();
                refused += usize::from(self.left == 0 && self.code == REFUSED_STREAM);
            }
        }
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, 0, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn refused_streams_are_counted_wherever_the_bytes_are_cut() {
        let bytes = [
            frame(4, &[]),
            frame(RESET, &REFUSED_STREAM),
            frame(0, &[0, 0, 0, 7, 3, 0, 0, 0, 7]),
            frame(RESET, &[0, 0, 0, 8]),
            frame(4, &[]),
            frame(RESET, &REFUSED_STREAM),
        ]
        .concat();
        for step in 1..bytes.len() {
            let mut frames = SentFrames::default();
            assert_eq!(bytes.chunks(step).map(|bytes| frames.take(bytes)).sum::<usize>(), 2, "{step}");
        }
    }
}
