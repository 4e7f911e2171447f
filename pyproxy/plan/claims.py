"""Decides which Service port gets an address and port, or a node port, that several Services list.

The API server allocates each cluster IP and node port once, but two Services may list the same external IP, and files may
contain anything. In kube-proxy the iteration order of a hash map decides. Here a cluster IP wins over an external address,
so that no Service can take over the cluster IP of another one (CVE-2020-8554); then the older Service wins; then the name.
"""

from pyproxy.model.names import ServicePortName
from pyproxy.plan.service_plan import Claim, ServicePlan

# Sorts after every RFC 3339 time: an object from a file without a creation time counts as younger.
NO_TIME = "~"


class Claims:
    """Every claim of every planned Service port, in one family."""

    def __init__(self) -> None:
        self._plans: dict[ServicePortName, ServicePlan] = {}
        # Each claim is in one of the two. Nearly all have one claimant, which needs no set.
        self._only: dict[Claim, ServicePortName] = {}
        self._contested: dict[Claim, set[ServicePortName]] = {}

    def update(self, name: ServicePortName, plan: ServicePlan | None) -> set[ServicePortName]:
        """Replace the plan of a port; return the *other* ports that may have gained or lost a claim.

        Args:
            name: of the port.
            plan: with everything that the port requests; None means that the port is gone.
        """
        affected: set[ServicePortName] = set()
        before = self._plans.pop(name, None)
        if before is not None:
            for claim in before.claims():
                rivals = self._contested.get(claim)
                if rivals is None:
                    del self._only[claim]
                    continue
                # Any rival may be the new winner. Which one is decided by `winner`, when all changes of this port are known.
                rivals.discard(name)
                affected |= rivals
                if len(rivals) == 1:
                    del self._contested[claim]
                    self._only[claim] = next(iter(rivals))
        if plan is not None:
            self._plans[name] = plan
            for claim in plan.claims():
                rivals = self._contested.get(claim)
                if rivals is None:
                    holder = self._only.setdefault(claim, name)
                    if holder == name:
                        continue
                    del self._only[claim]
                    rivals = self._contested[claim] = {holder}
                rivals.add(name)
                affected |= rivals
        affected.discard(name)
        return affected

    def requested(self, name: ServicePortName) -> ServicePlan | None:
        """Return the plan of a port with everything that it requests; None if the port is gone."""
        return self._plans.get(name)

    def effective(self, name: ServicePortName) -> ServicePlan | None:
        """Return the plan of a port without the claims that other ports win; None if the port is gone."""
        plan = self._plans.get(name)
        # Without a conflict anywhere, as in nearly every cluster, no plan is searched.
        if plan is None or not self._contested:
            return plan
        return plan.without(
            frozenset(claim for claim in plan.claims() if claim in self._contested and self.winner(claim) != name)
        )

    def winner(self, claim: Claim) -> ServicePortName | None:
        """Return the port that wins a claim; None if no port requests it."""
        rivals = self._contested.get(claim)
        if rivals is None:
            return self._only.get(claim)

        def rank(name: ServicePortName) -> tuple[bool, str, ServicePortName]:
            plan = self._plans[name]
            # False sorts first: the port whose cluster IP it is. A node port has no IP, and no cluster IP is empty.
            return claim.ip != plan.cluster_ip, plan.created or NO_TIME, name

        return min(rivals, key=rank)
