"""The iptables mode: Services as chains and rules, in the legacy or the nft variant of iptables."""
