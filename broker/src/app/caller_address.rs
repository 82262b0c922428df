//! Proofs of a caller's addresses.
//!
//! **The problem.** A machine with IPv4 and IPv6 reaches a broker by one of the two, and its target perhaps by the other. A policy with the
//! source `caller` admits only an address at which the broker has seen the caller, and a request comes from one.
//!
//! **The rule.** The broker tells a caller the address at which it sees it, with a proof: a code under a key that only this process knows,
//! over the caller's key, the address and an end. A request that carries the proof shows that this caller was at this address a moment
//! ago. The broker keeps nothing, so nothing needs a bound.
//!
//! **On failure.** A proof of another caller, of another broker or past its end proves nothing. The address is then a source like any
//! other: the policies allow it by a range, or not.

use std::net::IpAddr;
use std::time::Duration;

use postern_core::PrincipalKey;
use ring::hmac;

/// The time for which a proof is valid.
const PROOF_LIFETIME: Duration = Duration::from_secs(60);

/// The maker and judge of proofs.
#[derive(Debug)]
pub struct AddressProofs {
    key: hmac::Key,
}

impl Default for AddressProofs {
    fn default() -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &rand::random::<[u8; 32]>()) }
    }
}

impl AddressProofs {
    /// Proves that a principal was seen at an address at `now`, on the clock that counts since boot.
    pub fn prove(&self, principal: &PrincipalKey, address: IpAddr, now: Duration) -> Vec<u8> {
        let end = now.saturating_add(PROOF_LIFETIME).as_secs().to_be_bytes();
        let code = hmac::sign(&self.key, &text(principal, address, end));
        [&end[..], code.as_ref()].concat()
    }

    /// Reports whether a proof holds at `now`.
    pub fn holds(&self, principal: &PrincipalKey, address: IpAddr, proof: &[u8], now: Duration) -> bool {
        let Some((end, code)) = proof.split_first_chunk::<8>() else { return false };
        hmac::verify(&self.key, &text(principal, address, *end), code).is_ok()
            && now.as_secs() < u64::from_be_bytes(*end)
    }
}

/// Returns what a proof is over. A line end stands in no key.
fn text(principal: &PrincipalKey, address: IpAddr, end: [u8; 8]) -> Vec<u8> {
    let mut text = format!("{principal}\n{}\n", address.to_canonical()).into_bytes();
    text.extend(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i7_a_proof_holds_for_its_caller_its_address_its_broker_and_its_time() {
        let principal = |name: &str| PrincipalKey::parse(name).unwrap();
        let (proofs, now) = (AddressProofs::default(), Duration::from_secs(1000));
        let address: IpAddr = "2001:db8::7".parse().unwrap();
        let proof = proofs.prove(&principal("alice"), address, now);
        let holds = |who, at: &str, proof: &[u8], seconds| {
            proofs.holds(&principal(who), at.parse().unwrap(), proof, Duration::from_secs(seconds))
        };
        assert!(holds("alice", "2001:db8::7", &proof, 1000) && holds("alice", "2001:db8::7", &proof, 1059));
        assert!(!holds("alice", "2001:db8::7", &proof, 1060), "past its end");
        assert!(!holds("bob", "2001:db8::7", &proof, 1000));
        assert!(!holds("alice", "2001:db8::8", &proof, 1000));
        assert!(!AddressProofs::default().holds(&principal("alice"), address, &proof, now), "another broker");
        let mut longer = proof.clone();
        longer[6] ^= 1;
        assert!(!holds("alice", "2001:db8::7", &longer, 1000), "a changed end");
        for length in 0..proof.len() {
            assert!(!holds("alice", "2001:db8::7", &proof[..length], 1000));
        }
    }
}
