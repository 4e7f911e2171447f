"""The ipvs mode: Services as virtual servers, with ipsets and helper rules of iptables."""
