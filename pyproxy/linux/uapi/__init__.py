"""Numbers of the kernel's user API, one module for each header in `include/uapi/linux`.

A class holds the constants with one prefix, so `NFTA_SET_ELEM_KEY_END` is `NftaSetElem.KEY_END`. Only the constants that
pyproxy uses are here.
"""
