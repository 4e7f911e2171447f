"""Who gets an address and port, or a node port, that several Services claim.

An API server hands out cluster IPs and node ports once only, but nothing keeps two Services from
listing one external IP, and files can hold anything. kube-proxy lets the order of a hash map decide;
here a cluster IP beats an external address (nobody may take over another Service's cluster IP, which is
CVE-2020-8554), then the older Service wins, then the name.
"""

from collections.abc import Iterable

from pyproxy.model.names import ServicePortName
from pyproxy.plan.service_plan import Claim, ServicePlan

# Sorts behind every RFC 3339 time: an object from a file without a creation time is the younger one.
_NO_TIME = "~"


class Claims:
    """Every claim of every planned Service port, in one family."""

    def __init__(self) -> None:
        self._plans: dict[ServicePortName, ServicePlan] = {}
        self._only: dict[Claim, ServicePortName] = {}
        self._contested: dict[Claim, set[ServicePortName]] = {}

    def update(self, name: ServicePortName, plan: ServicePlan | None) -> set[ServicePortName]:
        """Note what a port claims now (None: it is gone); return the *other* ports that may have gained or lost by it."""
        affected: set[ServicePortName] = set()
        before = self._plans.pop(name, None)
        if before is not None:
            for claim in before.claims():
                affected.update(self._release(claim, name))
        if plan is not None:
            self._plans[name] = plan
            for claim in plan.claims():
                affected.update(self._take(claim, name))
        affected.discard(name)
        return affected

    def requested(self, name: ServicePortName) -> ServicePlan | None:
        """Return the plan of a port with all that it claims; None if the port is gone."""
        return self._plans.get(name)

    def effective(self, name: ServicePortName) -> ServicePlan | None:
        """Return the plan of a port without the claims that another port has; None if the port is gone."""
        plan = self._plans.get(name)
        if plan is None or not self._contested:
            return plan
        return plan.without(
            frozenset(claim for claim in plan.claims() if claim in self._contested and self.winner(claim) != name)
        )

    def winner(self, claim: Claim) -> ServicePortName | None:
        """Return the port that has a claim; None if nobody claims it."""
        rivals = self._contested.get(claim)
        if rivals is None:
            return self._only.get(claim)
        return min(rivals, key=lambda name: self._rank(claim, name))

    def _rank(self, claim: Claim, name: ServicePortName) -> tuple[bool, str, ServicePortName]:
        plan = self._plans[name]
        return claim.ip != plan.cluster_ip, plan.created or _NO_TIME, name

    def _take(self, claim: Claim, name: ServicePortName) -> Iterable[ServicePortName]:
        rivals = self._contested.get(claim)
        if rivals is None:
            holder = self._only.setdefault(claim, name)
            if holder == name:
                return ()
            del self._only[claim]
            rivals = self._contested[claim] = {holder}
        rivals.add(name)
        return rivals

    def _release(self, claim: Claim, name: ServicePortName) -> Iterable[ServicePortName]:
        rivals = self._contested.get(claim)
        if rivals is None:
            del self._only[claim]
            return ()
        rivals.discard(name)
        if len(rivals) == 1:
            del self._contested[claim]
            self._only[claim] = next(iter(rivals))
        return tuple(rivals)
