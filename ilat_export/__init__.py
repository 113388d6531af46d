"""ilat_export"""
