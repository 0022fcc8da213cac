"""testprocess"""
