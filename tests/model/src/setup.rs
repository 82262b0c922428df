//! The bounds of a model, and the rules that can be broken in it.
//!
//! Of the numbers of ticks only the order matters: belief ends before life, and the wait is over after the last call has
//! landed. They are as small as they can be in that order, because every tick more is another dimension of states.

/// The ticks that a membership lives in the store after a beat.
pub const LIFE: u8 = 2;
/// The ticks that a replica believes its membership after it sent a beat: less than [`LIFE`].
pub const BELIEF: u8 = 1;
/// The ticks within which a call lands after it was sent, or never.
pub const LATE: u8 = 1;
/// The ticks after which a look is a second one. A call is sent for at most [`BELIEF`] after the lease was lost, and lands
/// within [`LATE`] of that.
pub const WAIT: u8 = BELIEF + LATE;

/// The number of times that each fault may still happen. Slowness is no fault: any step may come late, or after any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Faults {
    /// A replica is killed.
    pub kills: u8,
    /// A replica is stopped. It may go on at any time.
    pub stops: u8,
    /// A replica is cut off from the store. It may come back at any time.
    pub cuts: u8,
    /// A replica ends in good order: it gives back what it has.
    pub quits: u8,
    /// The agent loses its session without the replica's knowing.
    pub moves: u8,
    /// A caller gives a call up that may land still: its answer is lost.
    pub lost_answers: u8,
    /// A call lands, and lands once more later.
    pub duplicates: u8,
}

impl Faults {
    /// No faults.
    pub const NONE: Self =
        Self { kills: 0, stops: 0, cuts: 0, quits: 0, moves: 0, lost_answers: 0, duplicates: 0 };
}

/// A rule of the protocol. Each can be broken, and the check then finds what it is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A reconciler's write names its lease, and the store refuses it when another has that.
    WritesNameTheLease,
    /// A reconciler's read names its lease, too.
    ReadsNameTheLease,
    /// A taker believes nothing of the cloud that it has not looked at.
    TakerLooksFirst,
    /// A taker looks again once everything late has landed.
    TakerLooksAgain,
    /// Until that second look, nothing counts as absent from the cloud.
    AbsenceWaitsForTheSecondLook,
    /// The second look is after both the last call that the loser can send and the time that it needs to land. That goes for
    /// a lease that was taken from a live member, too: the loser may not know it yet.
    SecondLookIsLateEnough,
    /// A replica acts on a look only with a snapshot that it read after the look: a window that an older snapshot does not
    /// know may be the next holder's.
    ReadsAfterLooking,
    /// A taker counts every grant that was not final, one that is closing included, as one that the agent may hold.
    InheritedMayBeHeld,
    /// A new token is a new beginning, also for one that held the lease before and does not know that it lost it: what agent
    /// and cloud answer to what was sent under the old one counts for nothing.
    NewTokenForgets,
    /// A membership is believed for less long than it lives.
    BeliefIsShorterThanLife,
    /// A call is sent only by one that believes its membership then, be it a provider's own retry, or one that waited for its
    /// turn: a round is dropped when the belief ends. Only what is past its end is closed all the same.
    CallsNeedBelief,
    /// A beat's answer says which leases are held: what was published may be lost.
    BeatReportsLostLeases,
    /// A session sends only what was read after it began.
    SessionSendsWhatIsNew,
    /// A view says what its publisher had read; absence in it counts for a grant that was closing by then.
    ViewsNameWhatWasRead,
    /// A replica without a membership ends its agents' sessions: they go to a replica that can work for them.
    SessionsNeedMembership,
}

/// A model to check.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// The number of replicas, up to [`crate::state::REPLICAS`].
    pub replicas: u8,
    /// The number of grants, up to [`crate::state::GRANTS`].
    pub grants: u8,
    /// True if the model begins with nothing done: no replica has the lease, and the agent is not connected.
    pub cold: bool,
    /// The tick at which all grants end.
    pub end: u8,
    /// The faults.
    pub faults: Faults,
    /// True if a replica may be stopped between the last check and the call, so that a call can be sent at any time.
    pub sends_late: bool,
    /// True if grants touch another target as well, whose holder decides by what is published of this one.
    pub far: bool,
    /// True if the sweep goes on for ever. Without it, a window that a taker's looks do not find is never found.
    pub sweeps: bool,
    /// The rule that is broken.
    pub broken: Option<Rule>,
}

impl Setup {
    /// Two replicas, one grant, no faults, every rule kept.
    pub const PLAIN: Self = Self {
        replicas: 2,
        grants: 1,
        cold: false,
        end: 3,
        faults: Faults::NONE,
        sends_late: false,
        far: false,
        sweeps: false,
        broken: None,
    };

    /// The same with a broken rule.
    #[must_use]
    pub fn without(self, rule: Rule) -> Self {
        Self { broken: Some(rule), ..self }
    }

    pub(crate) fn keeps(&self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }

    pub(crate) fn belief(&self) -> u8 {
        if self.keeps(Rule::BeliefIsShorterThanLife) { BELIEF } else { LIFE + 1 }
    }

    pub(crate) fn wait(&self) -> u8 {
        if self.keeps(Rule::SecondLookIsLateEnough) { WAIT } else { WAIT - 1 }
    }
}
