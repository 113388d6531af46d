"""ilat_train"""
