"""The nftables mode: one table for each family with constant rules; Services are elements of its maps and sets."""
