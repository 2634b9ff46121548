"""Azure's VM sizes: which numbers of vCPUs each series comes in.

In a series' name ``#`` stands for the number of vCPUs, ``Standard_D#s_v5`` without its ``Standard_``. Sources:

- `IRREGULAR`: https://learn.microsoft.com/azure/virtual-machines/sizes-previous-gen (A, D, DS, G, GS) and
  https://learn.microsoft.com/azure/virtual-machines/dv2-dsv2-series-memory (Dv2 and DSv2 from 11 on)
- `CONSTRAINED`: https://learn.microsoft.com/azure/virtual-machines/constrained-vcpu, which counts active vCPUs
- `REGULAR`: the sizes that Azure's resource SKU API listed in August 2026, as github.com/kubernetes/autoscaler keeps
  them (azure_instance_types.go), each with the vCPUs that its name tells; retired N and H series by sizes-previous-gen,
  https://learn.microsoft.com/azure/virtual-machines/h-series and https://learn.microsoft.com/azure/virtual-machines/hb-series
"""

from __future__ import annotations

#: Sizes whose number is not the number of vCPUs: the first series count their sizes instead.
IRREGULAR: dict[str, int] = {
    **{f"Basic_A{n}": cores for n, cores in enumerate((1, 1, 2, 4, 8))},
    **{f"Standard_A{n}": cores for n, cores in enumerate((1, 1, 2, 4, 8, 2, 4, 8, 8, 16, 8, 16))},
    **{
        f"Standard_{series}{n}{version}": cores
        for series in ("D", "DS")
        for version in ("", "_v2")
        for n, cores in ((1, 1), (2, 2), (3, 4), (4, 8), (11, 2), (12, 4), (13, 8), (14, 16))
    },
    **{f"Standard_{series}{n}_v2": cores for series in ("D", "DS") for n, cores in ((5, 16), (15, 20))},
    **{
        f"Standard_{series}{n}_v2_Promo": cores
        for series in ("D", "DS")
        for n, cores in ((2, 2), (3, 4), (4, 8), (5, 16), (11, 2), (12, 4), (13, 8), (14, 16))
    },
    **{
        f"Standard_DS{size}_v2": int(size.partition("-")[2])
        for size in ("11-1", "12-1", "12-2", "13-2", "13-4", "14-4", "14-8")
    },
    **{f"Standard_{series}{n}": 1 << n for series in ("G", "GS") for n in range(1, 6)},
    **{f"Standard_GS{size}": int(size.partition("-")[2]) for size in ("4-4", "4-8", "5-8", "5-16")},
}

#: Numbers of vCPUs: the series that come in exactly these.
REGULAR: dict[str, str] = {
    "1": "B#ls",
    "1 2": "B#s",
    "1 2 4": "DC#s_v2",
    "1 2 4 8": "A#_v2",
    "1 2 4 8 12 16 20": "B#ms",
    "1 2 4 8 16": "F# F#s",
    "1 2 4 8 16 24 32 48": "DC#ds_v3 DC#s_v3",
    "1 2 4 8 16 32 48 64 80": "F#ads_v7 F#alds_v7 F#als_v7 F#amds_v7 F#ams_v7 F#as_v7",
    "2": "B#ats_v2 B#pts_v2 B#ts_v2",
    "2 4": "DC#s",
    "2 4 8": "A#m_v2",
    "2 4 8 12 16 24 32": "L#aos_v4",
    "2 4 8 12 16 24 32 48 64 96": "FX#mds_v2 FX#ms_v2",
    "2 4 8 16": "B#pls_v2 B#ps_v2",
    "2 4 8 16 20 32": "E#pds_v5 E#ps_v5",
    "2 4 8 16 20 32 48 64": "E#_v3 E#_v4 E#d_v4 E#ds_v4 E#s_v3 E#s_v4",
    "2 4 8 16 20 32 48 64 96": (
        "E#_v5 E#a_v4 E#ads_v5 E#ads_v6 E#as_v4 E#as_v5 E#as_v6 E#d_v5 E#ds_v5 E#s_v5 EC#ads_v5 EC#as_v5"
    ),
    "2 4 8 16 20 32 48 64 96 128": "E#ds_v6 E#s_v6",
    "2 4 8 16 32": "B#als_v2 B#as_v2 B#ls_v2 B#s_v2",
    "2 4 8 16 32 48 64": (
        "D#_v3 D#_v4 D#d_v4 D#ds_v4 D#pds_v5 D#plds_v5 D#pls_v5 D#ps_v5 D#s_v3 D#s_v4 EC#eds_v6 EC#es_v6 "
        "F#als_v6 F#ams_v6 F#as_v6"
    ),
    "2 4 8 16 32 48 64 72": "F#s_v2",
    "2 4 8 16 32 48 64 80 96": "L#as_v4 L#s_v4",
    "2 4 8 16 32 48 64 96": (
        "D#_v5 D#a_v4 D#ads_v5 D#ads_v6 D#alds_v6 D#als_v6 D#as_v4 D#as_v5 D#as_v6 D#d_v5 D#ds_v5 D#lds_v5 "
        "D#ls_v5 D#pds_v6 D#plds_v6 D#pls_v6 D#ps_v6 D#s_v5 DC#ads_v5 DC#ads_v6 DC#as_v5 DC#as_v6 DC#eds_v5 "
        "DC#es_v5 E#bds_v5 E#bs_v5 E#pds_v6 E#ps_v6 EC#ads_v6 EC#as_v6"
    ),
    "2 4 8 16 32 48 64 96 128": "D#lds_v6 D#ls_v6 DC#eds_v6 DC#es_v6",
    "2 4 8 16 32 48 64 96 128 160": "D#ads_v7 D#alds_v7 D#als_v7 D#as_v7 E#ads_v7 E#as_v7",
    "2 4 8 16 32 48 64 96 128 192": "D#ds_v6 D#s_v6",
    "2 4 8 16 32 48 64 128": "EC#eds_v5 EC#es_v5",
    "4 8 12 24": "NV#ads_V710_v5",
    "4 8 16 20 32 48 64 96": "EC#ads_cc_v5 EC#as_cc_v5",
    "4 8 16 32": "L#s NV#as_v4",
    "4 8 16 32 48 64 96": "DC#ads_cc_v5 DC#as_cc_v5",
    "4 8 16 64": "NC#as_T4_v3",
    "4 12 24 36 48": "FX#mds",
    "6 12 18 36 72": "NV#ads_A10_v5",
    "6 12 24": "NC# NC#s_v2 NC#s_v3 ND#s NV# NV#s_v2",
    "8": "DC#_v2",
    "8 16": "H# H#m",
    "8 16 32": "NC#ads_A10_v4 NG#ads_V620_v1",
    "8 16 32 48 64 80": "L#as_v3 L#s_v2 L#s_v3",
    "8 16 32 64 128": "M#ms",
    "10 20 40": "NP#s",
    "12 24": "M#ds_v3 M#s_v3",
    "12 24 48": "NV#s_v3",
    "16": "H#mr H#r",
    "16 32 48 64 96 128 176": "M#bds_v3",
    "16 32 48 64 96 128 176 416": "M#bs_v3",
    "24": "NC#r NC#rs_v2 NC#rs_v3 ND#rs",
    "24 48 96": "NC#ads_A100_v4",
    "28": "NV#adms_V710_v5",
    "32": "M#ts NG#adms_V620_v1",
    "32 64": "M#ls",
    "32 64 128": "M#dms_v2",
    "32 64 128 208 416": "M#ms_v2",
    "36": "NV#adms_A10_v5",
    "40": "NC#ads_H100_v5 NCC#ads_H100_v5 ND#rs_v2",
    "44": "HC#rs",
    "48 96": "M#ds_1_v3 M#s_1_v3",
    "60": "HB#rs",
    "64": "E#i_v3 E#is_v3 M#bds_1_v3",
    "64 128": "M# M#ds_v2 M#m M#s",
    "64 128 208 416": "M#s_v2",
    "80": "E#ids_v4 E#is_v4 NC#adis_H100_v5",
    "96": (
        "E#ias_v4 EC#iads_v5 EC#ias_v5 M#bds_2_v3 M#ds_2_v3 M#s_2_v3 ND#amsr_A100_v4 ND#asr_v4 "
        "ND#is_MI300X_v5 ND#isr_H100_v5 ND#isr_H200_v5 ND#isr_MI300X_v5"
    ),
    "104": "E#i_v5 E#id_v5 E#ids_v5 E#is_v5",
    "112": "E#iads_v5 E#ias_v5 E#ibds_v5 E#ibs_v5",
    "120": "HB#rs_v2 HB#rs_v3",
    "128": "EC#ieds_v5 EC#ies_v5 M#bds_3_v3",
    "176": "HB#rs_v4 HX#rs M#bds_4_v3 M#ds_3_v3 M#ds_4_v3 M#s_3_v3 M#s_4_v3",
    "192": "E#ids_v6 E#is_v6 M#idms_v2 M#ids_v2 M#ims_v2 M#is_v2",
    "368": "HB#rs_v5",
    "416": "M#ds_6_v3 M#ds_8_v3 M#s_10_v2 M#s_6_v3 M#s_8_v2 M#s_8_v3 M#s_9_v2",
    "624 832": "M#ds_12_v3 M#s_12_v3",
    "832": "M#ids_16_v3 M#is_16_v3",
}

#: Sizes with some of their vCPUs switched off, as whole-active: the series that have them.
CONSTRAINED: dict[str, str] = {
    "2-1 4-1 4-2 8-2 8-4 16-4 16-8 32-8 32-16 64-16 64-32": "F#amds_v7 F#ams_v7",
    "4-2 8-2 8-4 12-6 16-4 16-8 24-6 24-12 32-8 32-16 48-12 48-24 64-16 64-32 96-24 96-48": "FX#mds_v2 FX#ms_v2",
    "4-2 8-2 8-4 16-4 16-8 32-8 32-16 64-16 64-32": "E#ds_v4 E#s_v3 E#s_v4",
    "4-2 8-2 8-4 16-4 16-8 32-8 32-16 64-16 64-32 96-24 96-48": "E#ads_v5 E#as_v4 E#as_v5 E#ds_v5 E#s_v5",
    "4-2 8-2 8-4 16-4 16-8 32-8 32-16 64-16 64-32 96-24 96-48 128-32 128-64": "E#ads_v7 E#as_v7 E#ds_v6 E#s_v6",
    "8-2 8-4 16-4 16-8 32-8 32-16 64-16 64-32 128-32 128-64": "M#ms",
    "44-16 44-32": "HC#rs",
    "64-32": "M#bds_1_v3",
    "96-24 96-48": "E#ads_v6",
    "96-48": "M#bds_2_v3",
    "120-16 120-32 120-64 120-96": "HB#rs_v2 HB#rs_v3",
    "128-64": "M#bds_3_v3",
    "128-64 176-88": "M#bds_v3 M#bs_v3",
    "176-24 176-48 176-96 176-144": "HB#rs_v4 HX#rs",
    "176-88": "M#bds_4_v3",
    "368-48 368-96 368-144 368-192 368-240 368-288 368-336": "HB#rs_v5",
    "416-208": "M#ms_v2 M#s_v2",
}
