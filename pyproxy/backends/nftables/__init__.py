"""The nftables mode: Services as elements of maps and sets in one table for each family."""
